import socket
from pathlib import Path

import pytest

from wanlora_tui.output.typed_paths import absolute, at, complete_path, meant

ODD = 'it\'s my "first" cut \\ 50% #1.mp4'


def as_pasted(path: str) -> list[str]:
    """What terminals paste for a file that is dragged into them."""
    behind = "".join(c if c.isalnum() or c in "/._-%" else f"\\{c}" for c in path)
    url = path.replace("%", "%25").replace(" ", "%20").replace('"', "%22").replace("\\", "%5C").replace("#", "%23")
    quoted = "'" + path.replace("'", "'\\''") + "'"
    double = '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return [
        path,
        behind,
        quoted,
        double,
        f"file://{url}",
        f"file://localhost{url}",
        f"file://{socket.gethostname()}{url}",
    ]


@pytest.mark.parametrize("name", ["plain.mp4", "two words.mp4", "it's.mp4", "Übung 日本.mp4", ODD])
@pytest.mark.parametrize("behind", ["", " ", "\n", " \n"])
def test_a_dragged_file_is_the_file_however_the_terminal_pastes_it(tmp_path: Path, name: str, behind: str) -> None:
    file = tmp_path / "a folder" / name
    file.parent.mkdir()
    file.write_text("")
    for text in as_pasted(str(file)):
        assert absolute(text + behind, Path("/else")) == file, text
        assert meant(text + behind, Path("/else")) == str(file), text


@pytest.mark.parametrize("name", ["'quoted'", '"twice"', "a\\ b", "file:", "back\\slash", " before", "behind ", "it's"])
def test_a_name_that_really_has_such_characters_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "in it.mp4").write_text("")
    for text in (name, f"{name}/in it.mp4", f"{name}/to-be-written.toml"):
        assert meant(text, tmp_path) == text
        assert absolute(text, tmp_path) == tmp_path / text


def test_what_is_to_be_written_is_understood_too(tmp_path: Path) -> None:
    (tmp_path / "my jobs").mkdir()
    for text in ("my\\ jobs/new\\ one.toml", "'my jobs/new one.toml'"):
        assert absolute(text, tmp_path) == tmp_path / "my jobs" / "new one.toml"


def test_home_is_meant_in_quotes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("'~/my clips'\n", Path("/else")) == tmp_path / "my clips"
    assert meant("'~/my clips'", Path("/else")) == "~/my clips"  # a job that moves to another home keeps it


@pytest.mark.parametrize(
    "text",
    [
        "'/half a quote", "'/one' '/two'", "file://", "file://elsewhere/clip.mp4", "file:///%ff.mp4", "file:///%00",
        "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16", "x" * 30_000, "'" + "x" * 30_000 + "'",
    ],
)  # fmt: skip
def test_text_that_names_no_file_of_this_machine_stays(text: str, tmp_path: Path) -> None:
    assert meant(text, tmp_path).strip("'") == text.strip("'")
    absolute(text, tmp_path)


def test_an_unknown_user_is_a_name_like_any_other(tmp_path: Path) -> None:
    assert at("~nobody-of-this-name/x", tmp_path) == tmp_path / "~nobody-of-this-name" / "x"
    assert absolute("~nobody-of-this-name/x", tmp_path) == tmp_path / "~nobody-of-this-name" / "x"


def test_what_was_pasted_is_completed(tmp_path: Path) -> None:
    (tmp_path / "my clips" / "orbit").mkdir(parents=True)
    assert complete_path("my\\ cl", tmp_path, None) == "my clips/"
    assert complete_path(f"'{tmp_path}/my clips/or'", Path("/else"), None) == f"{tmp_path}/my clips/orbit/"
    assert complete_path(f"file://{tmp_path}/my%20cl", Path("/else"), None) == f"{tmp_path}/my clips/"
