"""What was seen of runs, kept by several terminals."""

from pathlib import Path

from wanlora_tui.feeds.last_seen import REMEMBERED, LastSeenFile


def test_what_another_terminal_has_seen_meanwhile_is_kept(tmp_path: Path) -> None:
    early, late = LastSeenFile(tmp_path), LastSeenFile(tmp_path)
    late.saw("run", 5)
    early.saw("run", 300)
    early.saw("another", 7)
    early.save()
    late.saw("third", 1)
    late.save()
    seen = LastSeenFile(tmp_path)
    assert [seen.seq_of(run) for run in ("run", "another", "third")] == [300, 7, 1]
    late.saw("run", 400)
    late.save()
    assert LastSeenFile(tmp_path).seq_of("run") == 400


def test_the_oldest_of_many_runs_are_forgotten(tmp_path: Path) -> None:
    file = LastSeenFile(tmp_path)
    for i in range(REMEMBERED + 50):
        file.saw(f"run-{i}", 1)
    file.save()
    assert len(LastSeenFile(tmp_path).kept.seen) == REMEMBERED
    assert not file.seq_of("run-0") and file.seq_of(f"run-{REMEMBERED + 49}")
