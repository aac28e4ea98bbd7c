from pathlib import Path

import pytest

from presets.clips.captions import EXTENSIONS, MAX_CHARACTERS, CaptionError, caption_files, fill_trigger, read_caption


def written(folder: Path, content: bytes) -> Path:
    path = folder / "clip.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"orbit 360 around the subject\n", "orbit 360 around the subject"),
        (b"\xef\xbb\xbforbit", "orbit"),
        ("orbit é\r\n".encode("utf-16"), "orbit é"),
        (b"\xfe\xff" + "orbit".encode("utf-16-be"), "orbit"),
        (b"  one\r\n\r\n  two  \nthree\t\n", "one two three"),
        ("la cámara gira, 回転 \U0001f3a5".encode(), "la cámara gira, 回転 \U0001f3a5"),
        (b"", ""),
        (b" \n ", ""),
        (("é" * MAX_CHARACTERS).encode(), "é" * MAX_CHARACTERS),
    ],
)
def test_reads_a_caption_on_one_line(tmp_path: Path, content: bytes, caption: str) -> None:
    assert read_caption(written(tmp_path, content)) == caption


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("el niño".encode("latin-1"), "not UTF-8 (byte 5, line 1)"),
        (b"fine\n\xff\xff", "not UTF-8 (byte 5, line 2)"),
        (b"\xff\xfeo\0r", "damaged UTF-16"),
        (b"x" * (MAX_CHARACTERS + 1), "too long (10,001 bytes"),
        (b"x" * 1_000_000, "too long (1,000,000 bytes"),
        (b"or\0bit", "zero bytes"),
    ],
)
def test_refuses_what_is_no_caption(tmp_path: Path, content: bytes, what: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CaptionError) as refused:
        read_caption(path)
    assert what in refused.value.what
    assert refused.value.where == str(path) and refused.value.fix


def test_a_caption_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.txt").mkdir()
    with pytest.raises(CaptionError, match="cannot be read"):
        read_caption(tmp_path / "clip.txt")


@pytest.mark.parametrize(
    ("text", "trigger", "filled"),
    [
        ("[trigger], young woman", "frung", "frung, young woman"),
        ("a [trigger] look by [trigger]", "grn", "a grn look by grn"),
        ("[trigger], young woman", "", "young woman"),
        ("portrait of [trigger] at night", "", "portrait of at night"),
        ("[trigger]", "", ""),
        ("", "frung", ""),
    ],
)
def test_the_trigger_takes_the_place_of_its_mark(text: str, trigger: str, filled: str) -> None:
    assert fill_trigger(text, trigger) == filled


def paired(clips: str, texts: str, *extensions: str) -> dict[str, list[str]]:
    found = caption_files(map(Path, clips.split()), map(Path, texts.split()), extensions or EXTENSIONS)
    return {str(clip): [str(text) for text in texts] for clip, texts in found.items()}


def test_captions_by_stem_and_by_full_name_txt_first() -> None:
    texts = "a.mp4.caption a.mp4.txt a.caption a.TXT a.txt b.txt deep/a.txt"
    assert paired("a.mp4 deep/a.MOV c.mp4", texts) == {
        "a.mp4": ["a.txt", "a.TXT", "a.caption", "a.mp4.txt", "a.mp4.caption"],
        "deep/a.MOV": ["deep/a.txt"],
        "c.mp4": [],
    }


def test_of_clips_with_one_stem_each_may_have_its_own_caption() -> None:
    assert paired("c1.mp4 c1.webp", "c1.txt") == {"c1.mp4": ["c1.txt"], "c1.webp": ["c1.txt"]}
    assert paired("c1.mp4 c1.webp", "c1.txt c1.webp.txt") == {"c1.mp4": ["c1.txt"], "c1.webp": ["c1.webp.txt"]}


def test_a_dataset_may_name_the_ending_of_its_captions() -> None:
    assert paired("v1.2.mp4", "v1.2.long.txt", ".long.txt") == {"v1.2.mp4": ["v1.2.long.txt"]}
    assert paired("a.mp4", "A.LONG.txt a.Long.TXT", ".long.txt") == {"a.mp4": ["a.Long.TXT"]}
