"""Where wanlora is found on another machine, and what is made of what it answers."""

import json
import shutil
from pathlib import Path

import pytest

from daemon.wire.protocol import PROTOCOL_VERSION
from presets.errors import UserError
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.tiers import thorough
from wanlora_tui.remote.connection import connected
from wanlora_tui.remote.far_wanlora import HOSTS_FILE, NOT_FOUND, FarStatus, KnownHosts, read_status, require_ours

OURS = {"running": True, "protocol": PROTOCOL_VERSION, "control": "/r/c", "feed": "/r/f", "state": "answering"}
NOISE = "echo Welcome to the box; printf 'no line end'; echo careful >&2\n"


def found_in(there: OtherMachine, state: Path, given: str = "") -> str:
    """Where it is found, below the home there."""
    with connected(ALIAS, state, given) as line:
        return str(Path(line.wanlora).relative_to(there.home))


# --- finding it ------------------------------------------------------------------------------------------------


@needs_sshd
@pytest.mark.parametrize(
    ("place", "file", "start"),
    [
        ("wanlora-tui/.venv/bin/wanlora", "", ""),
        ("opt/wanlora", ".bash_profile", NOISE + "PATH=$PATH:$HOME/opt\ncat\n"),
        ("opt/wanlora", ".bashrc", "case $- in *i*) ;; *) return;; esac\nPATH=$PATH:$HOME/opt\n"),
        pytest.param("opt/wanlora", ".profile", "PATH=$PATH:$HOME/opt\n", marks=pytest.mark.thorough),
        pytest.param("opt/wanlora", ".bashrc", NOISE + "export PATH=$PATH:$HOME/opt\n", marks=pytest.mark.thorough),
    ],
)
def test_it_is_found_where_its_users_have_it(there: OtherMachine, state: Path, place: str, file: str, start: str):
    shutil.rmtree(there.home / ".local")
    there.install_wanlora(place)
    if file:
        (there.home / file).write_text(start)
    assert found_in(there, state) == place
    known = KnownHosts(state)
    assert known.wanlora_of(ALIAS) == str(there.home / place)
    if file:  # the next time it is not searched for
        (there.home / file).unlink()
        assert found_in(there, state) == place


@needs_sshd
@pytest.mark.parametrize("shell", [s for s in ("dash", "zsh", "fish", "tcsh") if shutil.which(s)])
def test_whatever_the_login_shell_is(there: OtherMachine, state: Path, shell: str):
    there.shell = [str(shutil.which(shell)), "-c"]
    there.write_login()
    assert found_in(there, state) == ".local/bin/wanlora"


@needs_sshd
def test_the_user_may_say_where_it_is(there: OtherMachine, state: Path):
    there.install_wanlora("my folder/wanlora")
    assert found_in(there, state, "~/my folder/wanlora") == "my folder/wanlora"
    assert not (state / HOSTS_FILE).exists()
    with pytest.raises(UserError, match=r"box: no program /nowhere/wanlora there\. Give --remote-wanlora"):
        found_in(there, state, "/nowhere/wanlora")


@needs_sshd
def test_a_place_that_no_longer_works_is_forgotten(there: OtherMachine, state: Path):
    KnownHosts(state).remember(ALIAS, str(there.write_wrapper(there.home / "old/wanlora", "exit 1")))
    assert found_in(there, state) == ".local/bin/wanlora"
    assert KnownHosts(state).wanlora_of(ALIAS) == str(there.home / ".local/bin/wanlora")
    shutil.rmtree(there.home / ".local")
    with pytest.raises(UserError, match="no wanlora found there"):
        found_in(there, state)
    assert KnownHosts(state).wanlora_of(ALIAS) == ""


@needs_sshd
@pytest.mark.parametrize(
    "answer", ["Segmentation fault", *thorough("", '{"running": "yes", "protocol": []}', "{}", "[]", "\0\7")]
)
def test_an_answer_that_is_none_is_an_error_that_shows_it(there: OtherMachine, state: Path, answer: str):
    there.write_wrapper(there.home / ".local/bin/wanlora", f"cat <<'E'\n{answer}\nE")
    with pytest.raises(UserError) as told:
        found_in(there, state)
    assert told.value.where == ALIAS and "does not understand" in told.value.what and "\0" not in str(told.value)


@needs_sshd
@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "", "\n"])
def test_what_is_no_host_is_refused(state: Path, host: str):
    with pytest.raises(UserError, match="is not a host"), connected(host, state):
        pass


@needs_sshd
@pytest.mark.parametrize("host", ["nobody@nowhere.invalid", "user@127.0.0.1:1"])
def test_a_host_that_is_not_there_is_told_in_the_words_of_ssh(there: OtherMachine, state: Path, host: str):
    with pytest.raises(UserError) as told, connected(host, state):
        pass
    assert "resolve hostname" in told.value.what.lower() and told.value.fix == f"Try: ssh {host}"


@needs_sshd
def test_a_server_that_forwards_no_sockets_is_told(there: OtherMachine, state: Path):
    there.stop()
    there.write_sshd_config("AllowStreamLocalForwarding no")
    there.start()
    with pytest.raises(UserError, match=r"open failed.*AllowStreamLocalForwarding"):
        found_in(there, state)


def test_no_ssh_here_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no ssh program here. Install"), connected(ALIAS, tmp_path):
        pass


# --- what it answers -------------------------------------------------------------------------------------------


def said(**changed: object) -> str:
    return f"/x/wanlora\n{json.dumps(OURS | changed)}\n"


def test_keys_of_newer_versions_are_passed_over():
    path, status = read_status("box", 0, said(more={"a": [1]}, pid=None), "")
    assert path == "/x/wanlora" and status.running
    require_ours("box", path, status)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"protocol": PROTOCOL_VERSION + 1, "version": "9.9"}, "wanlora 9.9"),
        ({"protocol": 0}, "speaks protocol 0"),
        ({"state": "hung", "problem": "the daemon\x1b[2J is hung"}, "there the daemon[2J is hung"),
        ({"state": "unheard of"}, "there the daemon does not answer"),
        ({"control": "", "feed": ""}, "where its sockets are"),
        ({"control": "relative"}, "where its sockets are"),
    ],
)
def test_a_daemon_that_we_cannot_talk_to(changed: dict[str, object], words: str):
    path, status = read_status("box", 0, said(**changed), "")
    with pytest.raises(UserError) as told:
        require_ours("box", path, status)
    assert words in told.value.what and told.value.fix


def test_an_older_answer_has_the_keys_that_are_needed():
    """That of 0.1.0."""
    answer = json.dumps({k: OURS[k] for k in ("running", "protocol", "control", "feed")})
    _, status = read_status("box", 1, f"/x/wanlora\n{answer}\n", "")
    require_ours("box", "/x/wanlora", status)


def test_nothing_found_is_said():
    with pytest.raises(UserError, match="no wanlora found there"):
        read_status("box", NOT_FOUND, "", "")


# --- what is remembered ----------------------------------------------------------------------------------------


def test_each_host_has_its_place(tmp_path: Path):
    known = KnownHosts(tmp_path / "made")
    known.remember("a", "/a/wanlora")
    known.remember("b", "/b/wanlora")
    assert known.wanlora_of("a") == "/a/wanlora" and known.wanlora_of("b") == "/b/wanlora"
    known.remember("a", "")
    assert known.wanlora_of("a") == "" and known.wanlora_of("b") == "/b/wanlora"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}'])
def test_a_damaged_file_costs_a_search(tmp_path: Path, content: bytes):
    (tmp_path / HOSTS_FILE).write_bytes(content)
    known = KnownHosts(tmp_path)
    assert known.wanlora_of("a") == ""
    known.remember("a", "/a/wanlora")
    assert known.wanlora_of("a") == "/a/wanlora"


def test_a_status_without_a_daemon():
    _, status = read_status("box", 1, said(running=False, state="none"), "")
    assert status == FarStatus(running=False, protocol=PROTOCOL_VERSION, control="/r/c", feed="/r/f", state="none")
