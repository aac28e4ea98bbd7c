"""What is begun after an ending, and what is not: without a daemon, with real settings, commands and receivers."""

import logging
from pathlib import Path

import pytest

from daemon.followup.facts import session_here
from daemon.followup.follow_ups import FollowUps
from daemon.queue.entry import Entry
from daemon.wire.protocol import JobRecord
from tests.daemon.followup.conftest import Receiver
from tests.helpers.waiting import until_async as until

pytestmark = pytest.mark.process  # its commands are


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    (tmp_path / "settings.toml").write_text(f"[when]\non_done = 'echo x >>{tmp_path}/ran'")
    record = JobRecord(id=1, name="a", job_path="/a", out=str(tmp_path), gpus=[0], state="running", attempt=1)
    return Entry(record=record, order=1)


class Kept:
    """A daemon's state folder and its one job; whether that was saved and shown."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder, self.entry, self.saved, self.shown = folder, entry, 0, 0

    def daemon(self, **options) -> FollowUps:
        return FollowUps(
            self.folder,
            self.folder / "settings.toml",
            {1: self.entry},
            lambda job: setattr(self, "saved", self.saved + 1),
            lambda job: setattr(self, "shown", self.shown + 1),
            **options,
        )

    async def end(self, follow_ups: FollowUps, state: str = "done") -> None:
        self.entry.record.state = state  # type: ignore[assignment]
        follow_ups.note(self.entry, None)
        follow_ups.tick()
        await until(lambda: not follow_ups.pending, "the end of what follows")


async def test_an_ending_runs_its_command_and_is_forgotten_then(tmp_path: Path, entry: Entry):
    kept = Kept(tmp_path, entry)
    await kept.end(kept.daemon())
    assert (tmp_path / "ran").read_text() == "x\n" and entry.follow_ups == [] and kept.saved
    assert "on_done ended with exit code 0." in entry.record.outcome and kept.shown == 1


async def test_what_ended_with_the_machine_runs_no_command(tmp_path: Path, entry: Entry, receiver: Receiver):
    with (tmp_path / "settings.toml").open("a") as f:
        f.write(f'\non_stopped = "touch {tmp_path}/ran"\n[[notify]]\nkind = "webhook"\nurl = "{receiver.url}"\n')
        f.write('on = ["stopped"]\n')
    kept = Kept(tmp_path, entry)
    await kept.end(kept.daemon(last_session="another"), "stopped")
    assert not (tmp_path / "ran").exists() and len(receiver.heard) == 1
    entry.record.state = "running"
    follow_ups = kept.daemon(last_session=session_here())
    await kept.end(follow_ups, "stopped")
    assert (tmp_path / "ran").exists()


async def test_one_of_an_earlier_boot_is_not_run_afterwards(
    tmp_path: Path, entry: Entry, caplog: pytest.LogCaptureFixture
):
    kept = Kept(tmp_path, entry)
    first = kept.daemon()
    entry.record.state = "done"
    first.note(entry, None)
    entry.follow_ups[0].session = "another"
    second = kept.daemon()
    second.tick()
    await until(lambda: not second.pending, "its end")
    assert not (tmp_path / "ran").exists() and "the machine has restarted since" in caplog.text
    assert entry.follow_ups == []


async def test_the_next_daemon_carries_out_what_one_left(tmp_path: Path, entry: Entry):
    kept = Kept(tmp_path, entry)
    entry.record.state = "running"
    first = kept.daemon()
    entry.record.state = "done"
    first.note(entry, None)  # and then it was killed
    second = kept.daemon()
    second.tick()
    await until(lambda: not second.pending, "its end")
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_a_receiver_is_tried_again_until_it_is_given_up(
    tmp_path: Path, entry: Entry, receiver: Receiver, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    (tmp_path / "settings.toml").write_text(
        f'[[notify]]\nkind = "webhook"\nname = "good"\nurl = "{receiver.url}/good"\n'
        '[[notify]]\nkind = "webhook"\nname = "gone"\nurl = "http://127.0.0.1:1/very-secret"\n'
        f'[[notify]]\nkind = "ntfy"\nname = "other"\nurl = "{receiver.url}/other"\non = ["failed"]\n'
    )
    receiver.codes = [503, 503, 200]
    kept = Kept(tmp_path, entry)
    follow_ups = kept.daemon(waits=(0.01, 0.01, 0.01))
    await kept.end(follow_ups)
    assert kept.saved and not kept.shown  # clients see nothing of it
    assert [heard.path for heard in receiver.heard] == ["/good"] * 3
    assert "good was told that it is done: answered 200" in caplog.text and "very-secret" not in caplog.text
    assert caplog.text.count("gone: cannot be reached") == 3
    [(_, failure)] = follow_ups.failures
    assert "gone could not be told" in failure


async def test_settings_that_are_mended_between_two_tries_count(tmp_path: Path, entry: Entry, receiver: Receiver):
    def settle(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(tmp_path / "settings.toml")

    settle(f'[[notify]]\nkind = "webhook"\nurl = "{receiver.url}/old"\n')
    receiver.codes = [503]
    follow_ups = Kept(tmp_path, entry).daemon(waits=(0.02,) * 10_000)
    entry.record.state = "done"
    follow_ups.note(entry, None)
    follow_ups.tick()
    await until(lambda: receiver.heard, "the first try")
    settle(f'[[notify]]\nkind = "webhook"\nurl = "{receiver.url}/new"\n')
    await until(lambda: receiver.heard[-1].path == "/new", "a try there")
    settle("no settings")
    tried = len(receiver.heard)
    await until(lambda: len(receiver.heard) > tried + 1, "tries while they cannot be read")
    settle("")
    await until(lambda: not follow_ups.pending, "its end")


async def test_those_who_know_are_not_told_again(tmp_path: Path, entry: Entry, receiver: Receiver):
    (tmp_path / "settings.toml").write_text(
        f'[[notify]]\nkind = "webhook"\nurl = "{receiver.url}/a"\n[[notify]]\nkind = "ntfy"\nurl = "{receiver.url}/b"\n'
    )
    kept = Kept(tmp_path, entry)
    first = kept.daemon()
    entry.record.state = "failed"
    first.note(entry, None)
    entry.follow_ups[0].delivered.append("webhook")
    second = kept.daemon()
    second.tick()
    await until(lambda: not second.pending, "its end")
    assert [heard.path for heard in receiver.heard] == ["/b"]


async def test_a_job_that_was_removed_meanwhile_is_not_saved(tmp_path: Path, entry: Entry):
    kept = Kept(tmp_path, entry)
    follow_ups = kept.daemon()
    entry.record.state = "done"
    follow_ups.note(entry, None)
    follow_ups.tick()
    follow_ups._entries.clear()
    await until(lambda: not follow_ups.pending, "its end")
    assert (tmp_path / "ran").exists() and not kept.saved and not kept.shown


async def test_a_key_that_leads_elsewhere_removes_nothing_there_and_is_said(tmp_path: Path, entry: Entry):
    (tmp_path / "home").mkdir()
    kept = Kept(tmp_path, entry)
    first = kept.daemon()
    entry.record.state = "done"
    first.note(entry, None)
    entry.follow_ups[0].key = str(tmp_path / "home")
    second = kept.daemon()
    second.tick()
    await until(lambda: not second.pending, "its end")
    assert (tmp_path / "home").is_dir() and not (tmp_path / "ran").exists() and entry.follow_ups == []
    assert "is not known, so it is not run" in second.failures[0][1]


@pytest.mark.parametrize(
    "facts",
    [{}, {"WANLORA_ATTEMPT": "../../x"}, {"WANLORA_ATTEMPT": "1", "WANLORA_STEP": "x", "A=B": "1", "N": "a\0"}],
)
async def test_what_a_damaged_one_lacks_is_taken_from_its_job_and_said(tmp_path: Path, entry: Entry, facts: dict):
    kept = Kept(tmp_path, entry)
    first = kept.daemon()
    entry.record.state = "done"
    first.note(entry, None)
    entry.follow_ups[0].facts = facts
    second = kept.daemon()
    second.tick()
    await until(lambda: not second.pending, "its end")
    assert (tmp_path / "ran").read_text() == "x\n" and "is damaged: WANLORA_" in second.failures[0][1]


@pytest.mark.parametrize("own", [None, "", "echo y"])
async def test_a_receiver_that_is_away_holds_the_idle_command_up_no_longer_than_a_while(
    tmp_path: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch, own: str | None
):
    """It is tried again all the same, and its job's command is over, also where there is none."""
    with (tmp_path / "settings.toml").open("a") as f:
        f.write('\n[[notify]]\nkind = "webhook"\nname = "gone"\nurl = "http://127.0.0.1:1/"\n')
    if own is not None:
        entry.commands["done"] = own
    follow_ups = Kept(tmp_path, entry).daemon(waits=(1000.0,))
    assert not follow_ups.hold_up()
    entry.record.state = "done"
    follow_ups.note(entry, None)
    follow_ups.tick()
    await until(lambda: not entry.follow_ups[0].command_due, "the end of its command")
    assert follow_ups.hold_up()
    monkeypatch.setattr("daemon.followup.follow_ups.HOLD_SECONDS", 0.0)
    assert not follow_ups.hold_up() and follow_ups.pending == 1 and entry.follow_ups


async def test_a_command_holds_the_idle_command_up_until_its_end(
    tmp_path: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("daemon.followup.follow_ups.HOLD_SECONDS", 0.0)
    entry.commands["done"] = f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    kept = Kept(tmp_path, entry)
    follow_ups = kept.daemon()
    entry.record.state = "done"
    follow_ups.note(entry, None)
    follow_ups.tick()
    assert follow_ups.hold_up()
    (tmp_path / "go").touch()
    await until(lambda: not follow_ups.pending, "the end of what follows")
    assert not follow_ups.hold_up()
