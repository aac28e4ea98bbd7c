import os
import struct
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from presets.clips.clip_facts import ClipFacts, probe_clip, scan_dataset
from presets.clips.video_index import open_video, read_index
from presets.errors import ClipError
from presets.findings import Finding
from presets.job.schema import DatasetPanel
from presets.look import Look
from tests.helpers.footage import real_clips
from tests.helpers.videos import number_of, numbered, write_clip, write_image

NOISE = bytes(range(1, 256)) * 40


def decoded_frames(path: Path) -> list[int]:
    with open_video(path) as (container, stream):
        return [number_of(f.to_ndarray(format="rgb24")) for f in container.decode(stream)]


def refused(path: Path) -> ClipError:
    """The ClipError of a file: one line that names the file and says what to do."""
    with pytest.raises(ClipError) as caught:
        probe_clip(path)
    error = caught.value
    assert error.where == str(path) and error.fix and "\n" not in str(error) and "Errno" not in str(error)
    return error


@pytest.mark.parametrize(
    ("name", "codec", "canonical"),
    [
        ("clip.mp4", "libx264", "h264"),
        ("clip.mov", "libx264", "h264"),
        ("clip.m4v", "libx264", "h264"),
        ("clip.MKV", "libx264", "h264"),
        ("clip.webm", "libvpx-vp9", "vp9"),
        ("clip.webm", "libvpx", "vp8"),
        ("clip.avi", "mpeg4", "mpeg4"),
        ("clip.avi", "mjpeg", "mjpeg"),
        ("clip.mov", "prores_ks", "prores"),
        ("clip.mp4", "libx265", "hevc"),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str, canonical: str) -> None:
    path = write_clip(tmp_path / name, frames=50, codec=codec)
    facts = probe_clip(path)
    assert decoded_frames(path) == list(range(50))
    assert facts == ClipFacts(
        path=str(path),
        kind="video",
        frames=50,
        fps=24.0,
        duration=facts.duration,
        width=64,
        height=48,
        rotation=0,
        codec=canonical,
        variable_rate=False,
        size_bytes=path.stat().st_size,
    )
    assert facts.duration == pytest.approx(50 / 24, abs=0.002)


def rewritten(source: Path, path: Path, change: Callable[[int, bytes], bytes | None]) -> Path:
    """A copy of a video in which `change` gave packet i other content, or None to leave it out."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(whole.streams.video[0])
        for i, packet in enumerate(p for p in whole.demux(video=0) if p.size):
            content = change(i, bytes(packet))
            if content is not None:
                other = av.Packet(content)
                other.pts, other.dts, other.time_base, other.is_keyframe, other.stream = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.is_keyframe,
                    copy,
                )
                out.mux(other)
    return path


def test_tags_that_are_not_utf_8(tmp_path: Path) -> None:
    """As old programs wrote them; PyAV 18 must be told to read them, PyAV 19 may not be."""
    with (
        av.open(str(write_clip(tmp_path / "clip.avi", codec="mjpeg"))) as whole,
        av.open(str(tmp_path / "tagged.avi"), "w") as out,
    ):
        out.metadata["title"] = "cafX"
        copy = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    tagged = tmp_path / "tagged.avi"
    assert b"cafX" in tagged.read_bytes()
    tagged.write_bytes(tagged.read_bytes().replace(b"cafX", b"caf\xe9"))
    assert probe_clip(tagged).frames == 48
    with open_video(tagged) as (container, stream):
        assert (
            container.metadata["title"].startswith("caf")
            and type(read_index(container, stream, where="").time_base) is Fraction
        )


def test_vp8_references_that_are_never_shown_are_not_counted(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.webm", frames=30, codec="libvpx")
    hide = bytes([0xFF & ~0x10])  # show_frame = 0
    path = rewritten(
        whole,
        tmp_path / "hidden.webm",
        lambda i, packet: bytes([packet[0] & hide[0]]) + packet[1:] if i in (5, 6, 20) else packet,
    )
    assert decoded_frames(path) == [i for i in range(30) if i not in (5, 6, 20)]
    assert probe_clip(path).frames == 27


def test_frames_before_the_first_keyframe_are_not_counted(tmp_path: Path) -> None:
    path = rewritten(
        write_clip(tmp_path / "whole.mkv"), tmp_path / "joined_late.mkv", lambda i, packet: packet if i >= 5 else None
    )
    assert decoded_frames(path) == list(range(12, 48))
    facts = probe_clip(path)
    assert facts.frames == 36 and facts.duration == pytest.approx(36 / 24, abs=0.002)


def test_an_end_that_decodes_to_nothing(tmp_path: Path) -> None:
    filler = b"\0\0\0\4\x4c\1\xff\x80"  # of HEVC: a unit of the stream without a picture in it
    path = rewritten(
        write_clip(tmp_path / "whole.mp4", codec="libx265"),
        tmp_path / "hollow.mp4",
        lambda i, packet: packet if i < 40 else filler,
    )
    assert "of its 2.0 s do not decode" in refused(path).what


def test_a_first_frame_that_is_half_damaged(tmp_path: Path) -> None:
    path = rewritten(
        write_clip(tmp_path / "whole.avi", codec="mpeg4"),
        tmp_path / "damaged.avi",
        lambda i, packet: packet[: len(packet) // 2] + bytes(len(packet) // 2) if i == 0 else packet,
    )
    assert refused(path).what == "its first frame does not decode"


@pytest.mark.parametrize("fps", [16.0, 25.0, 30000 / 1001, 59.94])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rates(tmp_path: Path, fps: float, suffix: str) -> None:
    facts = probe_clip(write_clip(tmp_path / f"clip{suffix}", frames=31, fps=fps))
    assert facts.fps == pytest.approx(fps, rel=1e-4) and not facts.variable_rate
    assert facts.duration == pytest.approx(31 / fps, abs=0.002)


def test_a_file_that_changed_is_probed_again(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=9)
    assert probe_clip(path).frames == 9 and probe_clip(path) is probe_clip(path)
    write_clip(path, frames=13)
    assert probe_clip(path).frames == 13
    path.write_bytes(b"")
    refused(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_variable_rate(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", frames=30, variable=True)  # 1, 1, 2, 1, 1, 2 ... ticks of 1/24 s
    facts = probe_clip(path)
    assert facts.variable_rate and facts.frames == 30
    assert facts.fps == pytest.approx(18, rel=0.05)
    assert facts.duration == pytest.approx(40 / 24, abs=0.05)
    with open_video(path) as (container, stream):
        times = read_index(container, stream, where=str(path)).times
    assert times[:5] == pytest.approx([0, 1 / 24, 2 / 24, 4 / 24, 5 / 24], abs=0.001)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_gives_the_size_as_viewed_and_the_turn_that_stands_a_frame_upright(
    tmp_path: Path, rotation: int, suffix: str
) -> None:
    upright = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64).astype(np.uint8)).convert("RGB")
    stored = np.rot90(numbered(5, 64, 48), -rotation // 90)
    assert upright.size == (64, 48)
    path = write_clip(
        tmp_path / f"phone{suffix}",
        frames=5,
        width=stored.shape[1],
        height=stored.shape[0],
        rotation=rotation,
        picture=lambda i: np.ascontiguousarray(stored),
    )
    facts = probe_clip(path)
    assert (facts.width, facts.height, facts.rotation) == (64, 48, rotation)
    with open_video(path) as (container, stream):
        frame = next(container.decode(stream)).to_ndarray(format="rgb24")
    assert number_of(np.rot90(frame, facts.rotation // 90)) == 5


def test_a_clip_of_one_frame(tmp_path: Path) -> None:
    facts = probe_clip(write_clip(tmp_path / "one.mp4", frames=1))
    assert facts.frames == 1 and facts.duration == pytest.approx(1 / 24, abs=0.001) and not facts.variable_rate


def test_sound_and_a_longer_sound_track_do_not_count(tmp_path: Path) -> None:
    facts = probe_clip(write_clip(tmp_path / "loud.mp4", frames=24, sound=True))
    assert facts.frames == 24 and facts.duration == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize(
    ("name", "codec", "cut", "what"),
    [
        ("moov_at_end.mp4", "libx264", 0.5, "truncated"),
        ("moov_missing.mp4", "libx264", "moov", "no index (moov)"),
        ("clip.mkv", "libx264", 0.6, "truncated"),
        ("clip.webm", "libvpx-vp9", 0.6, "truncated"),
        ("clip.avi", "mpeg4", 0.6, "truncated"),
        ("header_only.mp4", "libx264", 20 / 3000, "no index (moov)"),
    ],
)
def test_truncated_files(tmp_path: Path, name: str, codec: str, cut: float | str, what: str) -> None:
    path = write_clip(tmp_path / name, codec=codec)
    content = path.read_bytes()
    path.write_bytes(
        content[: content.index(b"moov") - 4] if cut == "moov" else content[: int(len(content) * float(cut))]
    )
    error = refused(path)
    assert what in error.what and error.code == "clip-unreadable"


def test_truncated_with_the_index_in_front(tmp_path: Path) -> None:
    whole, path = write_clip(tmp_path / "whole.mp4"), tmp_path / "stream.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    assert probe_clip(path).frames == 48
    path.write_bytes(path.read_bytes()[:-2000])
    assert "ends 2,000 bytes too early" in refused(path).what


def test_a_clip_trimmed_by_an_edit_list_starts_between_keyframes(tmp_path: Path) -> None:
    whole, path = write_clip(tmp_path / "whole.mp4"), tmp_path / "trimmed.mp4"
    with (
        av.open(str(whole)) as source,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as out,
    ):
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 7 * 512, packet.dts - 7 * 512, copy
                out.mux(packet)
    assert decoded_frames(path) == list(range(7, 48))
    assert probe_clip(path).frames == 41


def test_a_header_that_promises_less_than_is_missing_is_caught_by_decoding(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "zeroed.mp4", frames=48)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    length = struct.unpack(">I", content[start - 8 : start - 4])[0] - 8
    # as an interrupted copy into a preallocated file leaves it
    content[start + length // 3 : start + length] = bytes(length - length // 3)
    path.write_bytes(content)
    assert "do not decode" in (what := refused(path).what) or "does not decode" in what


@pytest.mark.parametrize(
    ("name", "content", "what", "code"),
    [
        ("empty.mp4", b"", "empty (0 bytes)", "clip-unreadable"),
        ("note.mp4", b"this is a text file\n" * 50, "text file", "not-a-video"),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>", "web page", "not-a-video"),
        ("lfs.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "Git LFS", "not-a-video"),
        ("hole.mp4", bytes(10_000), "zero bytes", "clip-unreadable"),
        ("noise.mp4", NOISE, "is not a video that can be read (invalid data", "clip-unreadable"),
        ("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "text file", "not-a-video"),
        ("empty.png", b"", "empty (0 bytes)", "clip-unreadable"),
        ("note.png", b"this is a text file\n", "text file, not an image", "not-a-video"),
        ("noise.jpg", NOISE, "not an image that can be read", "clip-unreadable"),
        ("clip.vob", b"abc", ".vob is no clip", "not-a-video"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_clips(tmp_path: Path, name: str, content: bytes, what: str, code: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(path)
    assert what in str(error) and error.code == code


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("a.gif", "a.gif"),
        ("b.gif", "b.mp4"),
        ("c.apng", "c.mp4"),
        ("c.apng", "c.png"),
        ("d.webp", "d.webp"),
        ("d.webp", "d.mp4"),
    ],
)
def test_animations_are_no_videos(tmp_path: Path, written: str, named: str) -> None:
    codec = {".gif": "gif", ".apng": "apng", ".webp": "libwebp_anim"}[Path(written).suffix]
    path = write_clip(tmp_path / written, codec=codec).rename(tmp_path / named)
    error = refused(path)
    assert (
        error.code == "not-a-video"
        and {"gif": "a GIF", "apng": "an animated PNG", "libwebp_anim": "an animated WebP"}[codec] in error.what
    )


def test_an_image_named_as_a_video(tmp_path: Path) -> None:
    error = refused(write_image(tmp_path / "a.png").rename(tmp_path / "a.mp4"))
    assert "PNG image" in error.what and error.fix == "Rename it to .png" and error.code == "not-a-video"


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        voice = out.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        out.mux(voice.encode(silence))
        out.mux(voice.encode(None))
    assert refused(path).what == "holds no picture, only sound"


def test_folders_pipes_and_broken_links(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    assert "is a folder" in refused(tmp_path / "folder.mp4").what
    assert "is not a file" in refused(tmp_path / "pipe.mp4").what
    assert "link to nothing" in refused(tmp_path / "link.mp4").what
    with pytest.raises(ClipError, match="does not exist"):
        probe_clip(tmp_path / "gone.mp4")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG"])
def test_images_are_items_of_one_frame(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a{suffix}", 80, 40)
    facts = probe_clip(path)
    assert (facts.kind, facts.frames, facts.width, facts.height, facts.rotation, facts.duration) == (
        "image",
        1,
        80,
        40,
        0,
        0,
    )


def test_an_image_turned_by_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    Image.new("RGB", (80, 40)).save(tmp_path / "phone.jpg", exif=exif)
    facts = probe_clip(tmp_path / "phone.jpg")
    assert (facts.width, facts.height, facts.rotation) == (40, 80, 270)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_truncated_image(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a{suffix}", 256, 256)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path).code == "clip-unreadable"


def codes(problems: list[Finding]) -> list[tuple[str, str]]:
    return [(p.code, Path(p.field).name) for p in problems]


def test_what_a_dataset_leaves_out_is_neither_a_clip_nor_a_problem(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", "b.mp4", "deep/b.mp4"):
        write_clip(tmp_path / name, frames=9)
        (tmp_path / name).with_suffix(".txt").write_text("orbit")
    (tmp_path / "empty.mp4").write_bytes(b"")
    facts = scan_dataset(DatasetPanel(path=".", exclude=["deep/b.mp4", "empty.mp4", "c.mp4"]), 0, tmp_path)
    assert [Path(c.path).name for c in facts.clips] == ["a.mp4", "b.mp4"]
    assert (facts.problems, facts.left_out) == ([], ["deep/b.mp4", "empty.mp4"])


def test_what_is_wrong_with_a_caption_or_mask_stays_while_a_clip_of_it_trains(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames=9)
    write_image(tmp_path / "a.png")
    (tmp_path / "a.mask.png").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes("niño".encode("latin-1"))
    for left_out in (["a.mp4"], ["a.png"]):
        facts = scan_dataset(DatasetPanel(path=".", exclude=left_out), 0, tmp_path)
        files = {Path(p.field).name for p in facts.problems if p.severity == "error"}
        assert (len(facts.clips), files) == (1, {"a.mask.png", "a.txt"})
    neither = scan_dataset(DatasetPanel(path=".", exclude=["a.mp4", "a.png"]), 0, tmp_path)
    assert not neither.clips and not [p for p in neither.problems if p.severity == "error"]
    a_mask = scan_dataset(DatasetPanel(path=".", exclude=["a.mask.png"]), 0, tmp_path)
    assert a_mask.left_out == [] and "mask-unreadable" in {p.code for p in a_mask.problems}, "only clips are left out"


def test_scan_pairs_captions_and_names_every_problem(tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "orbit"
    (folder / "deep").mkdir(parents=True)
    (folder / "_controls").mkdir()
    (folder / ".hidden").mkdir()
    write_clip(folder / "b.mp4", frames=9)
    write_clip(folder / "a.MOV", frames=9)
    write_clip(folder / "deep" / "c.v2.mkv", frames=9)
    write_image(folder / "d.png")
    write_image(folder / "_controls" / "start.png")
    write_clip(folder / ".hidden" / "x.mp4", frames=9)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "b.txt").write_text("orbit 360\n", "utf-8")
    (folder / "deep" / "c.v2.txt").write_text("[trigger] pans", "utf-8")
    (folder / "a.txt").write_bytes("niño".encode("latin-1"))
    (folder / "d.txt").write_text("\n", "utf-8")
    (folder / "lost.txt").write_text("x", "utf-8")
    (folder / "README.md").write_text("x", "utf-8")
    (folder / "empty.mp4").write_bytes(b"")
    write_clip(folder / "funny.gif", codec="gif", frames=4)
    facts = scan_dataset(DatasetPanel(path="clips/orbit"), 2, tmp_path)
    assert facts.path == str(folder)
    assert [(Path(c.path).relative_to(folder).as_posix(), c.has_caption, c.caption) for c in facts.clips] == [
        ("a.MOV", True, ""),
        ("b.mp4", True, "orbit 360"),
        ("d.png", False, ""),
        ("deep/c.v2.mkv", True, "[trigger] pans"),
    ]
    assert [c.caption_or("a red ball") for c in facts.clips] == ["", "orbit 360", "a red ball", "[trigger] pans"], (
        "an empty file says nothing; one that cannot be read says something else than the default"
    )
    assert codes(facts.problems) == [
        ("caption-unreadable", "a.txt"),
        ("clip-unreadable", "empty.mp4"),
        ("not-a-video", "funny.gif"),
        ("caption-without-clip", "datasets[2].path"),
        ("files-ignored", "datasets[2].path"),
    ]
    assert [p.severity for p in facts.problems] == ["error", "error", "error", "advice", "advice"]
    assert facts.problems[3].message == "1 caption without a clip of the same name: lost.txt"
    assert facts.problems[4].message == "1 file left aside as neither clip, image nor caption: README.md"


def test_scan_pairs_masks_and_names_those_that_do_not_fit(tmp_path: Path) -> None:
    """A mask is no clip, and is not left aside either."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(tmp_path / name, frames=9)
    write_image(tmp_path / "d.png")
    (tmp_path / "deep").mkdir()
    write_clip(tmp_path / "a.mask.mkv", frames=9)
    write_image(tmp_path / "b.MASK.png")
    write_image(tmp_path / "b.mask.jpg")
    (tmp_path / "c.mask.png").write_bytes(b"")
    write_image(tmp_path / "d.mask.webp")
    write_image(tmp_path / "c.mp4.mask.png")
    write_image(tmp_path / "deep" / "a.mask.png")
    (tmp_path / "a.txt").write_text("orbit", "utf-8")
    facts = scan_dataset(DatasetPanel(path="."), 0, tmp_path)
    assert [(Path(c.path).name, Path(c.mask.path).name if c.mask else "") for c in facts.clips] == [
        ("a.mp4", "a.mask.mkv"),
        ("b.mp4", "b.MASK.png"),
        ("c.mp4", ""),
        ("d.png", "d.mask.webp"),
    ]
    assert facts.clips[0].caption == "orbit" and facts.clips[0].mask and facts.clips[0].mask.frames == 9
    assert codes(facts.problems) == [
        ("mask-twice", "b.mask.jpg"),
        ("mask-without-clip", "datasets[0].path"),
        ("mask-unreadable", "c.mask.png"),
    ]
    assert [p.severity for p in facts.problems] == ["error", "warning", "error"]
    assert facts.problems[1].message == "2 masks without a clip of the same name: c.mp4.mask.png, deep/a.mask.png"
    less = scan_dataset(DatasetPanel(path=".", exclude=["c.mp4", "b.mp4"]), 0, tmp_path)
    assert codes(less.problems) == [("mask-without-clip", "datasets[0].path")], "what is wrong with their masks is gone"
    off = scan_dataset(DatasetPanel(path=".", mask="off"), 0, tmp_path)
    assert not off.problems and not any(c.mask for c in off.clips) and len(off.clips) == 4


def scan_with(folder: Path, files: dict[str, str], **panel: Any) -> tuple[dict[str, str], list[Finding]]:
    """Captions by clip, and the problems, of a folder with an image for each name that ends in png or webp."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        if name.lower().endswith((".png", ".webp")):
            write_image(folder / name)
        else:
            (folder / name).write_text(text, "utf-8")
    facts = scan_dataset(DatasetPanel(path=str(folder), **panel), 0, Path("/"))
    return {Path(c.path).relative_to(folder).as_posix(): c.caption for c in facts.clips}, facts.problems


def test_captions_of_other_trainers_are_read(tmp_path: Path) -> None:
    files = {"a.PNG": "", "a.caption": "one", "deep/b.png": "", "deep/b.png.txt": "two", "c.png": "", "c.TXT": "three"}
    captions, problems = scan_with(tmp_path, files)
    assert captions == {"a.PNG": "one", "c.png": "three", "deep/b.png": "two"} and problems == []


def test_captions_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    files = {"a.png": "", "a.txt": "tags", "a.caption": "a sentence", "b.png": "", "b.txt": "same", "b.caption": "same"}
    files |= {"c.png": "", "c.txt": " ", "c.caption": "only this one says something"}
    captions, [found] = scan_with(tmp_path, files)
    assert captions == {"a.png": "tags", "b.png": "same", "c.png": "only this one says something"}
    assert (found.code, found.severity) == ("caption-conflict", "warning")
    assert found.message == "1 clip with captions that differ: a.png (a.txt, which counts, and a.caption)"
    assert 'caption_extension = ".caption"' in found.fix
    captions, [aside] = scan_with(tmp_path, {}, caption_extension=".caption")
    assert captions["a.png"] == "a sentence" and aside.code == "files-ignored"


def test_a_caption_that_two_clips_share_is_named(tmp_path: Path) -> None:
    captions, [found] = scan_with(tmp_path, {"c1.png": "", "c1.webp": "", "c1.txt": "both"})
    assert captions == {"c1.png": "both", "c1.webp": "both"}
    assert (found.code, found.severity) == ("caption-shared", "advice")
    assert found.message == "1 caption of more than one clip: c1.txt (c1.png, c1.webp)"
    captions, problems = scan_with(tmp_path, {"c1.webp.txt": "its own"})
    assert captions == {"c1.png": "both", "c1.webp": "its own"} and problems == []


def test_media_that_is_not_read_is_named_with_a_way_in(tmp_path: Path) -> None:
    files = {"a.png": "", "b c.ogv": "x", "d.PSD": "x", "notes.md": "x"}
    _, [aside, ignored] = scan_with(tmp_path, files)
    assert (aside.code, aside.severity) == ("media-left-aside", "warning")
    assert aside.message == "2 files left aside, of kinds that are not read: b c.ogv, d.PSD"
    assert aside.fix == "Convert with ffmpeg -i 'b c.ogv' -crf 12 'b c.mp4'; convert with magick d.PSD d.png"
    assert ignored.code == "files-ignored" and ignored.message.endswith(": notes.md")


def test_a_folder_of_nothing_but_media_that_is_not_read(tmp_path: Path) -> None:
    _, [found] = scan_with(tmp_path, {f"{i}.ogv": "x" for i in range(9)})
    assert (found.code, found.severity) == ("dataset-empty", "error")
    assert "that is read, only 0.ogv, 1.ogv" in found.message and found.message.endswith("7.ogv and 1 more")
    assert found.fix == "Convert with ffmpeg -i 0.ogv -crf 12 0.mp4"


def test_scan_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"")

    def found(path: str) -> list[tuple[str, str]]:
        facts = scan_dataset(DatasetPanel(path=path), 0, tmp_path)
        assert facts.clips == []
        return codes(facts.problems)

    assert found("empty") == [("dataset-empty", "datasets[0].path")]
    assert found("file") == [("dataset-missing", "datasets[0].path")]
    assert found("gone") == [("dataset-missing", "datasets[0].path")]
    assert found("bad") == [("clip-unreadable", "x.mp4")]


def test_a_folder_that_goes_away_while_it_is_looked_at_is_one_problem(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(folder / name, 9, 16)

    class AwayMeanwhile(Look):
        def at_all(self, items: Any, function: Any, *, threads: int) -> Any:
            folder.rename(tmp_path / "elsewhere")
            return super().at_all(items, function, threads=threads)

    found = scan_dataset(DatasetPanel(path="clips"), 0, tmp_path, AwayMeanwhile())
    (problem,) = found.problems
    assert problem.code == "dataset-missing" and "went away while it was looked at" in problem.message
    assert found.clips == []


def test_many_ignored_files_are_one_finding(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for i in range(20):
        (tmp_path / f"{i:02}.json").write_text("{}")
    [finding] = scan_dataset(DatasetPanel(path=str(tmp_path)), 0, Path("/")).problems
    assert finding.message.startswith("20 files left aside") and finding.message.endswith("07.json and 12 more")


def test_a_link_that_leads_back_up_ends_the_walk(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_clip(tmp_path / "data" / "a.mp4", frames=5)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    write_clip(tmp_path / "elsewhere" / "b.mp4", frames=5)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    facts = scan_dataset(DatasetPanel(path="data"), 0, tmp_path)
    assert [Path(c.path).name for c in facts.clips] == ["a.mp4", "b.mp4"] and facts.problems == []


def test_order_does_not_depend_on_who_finishes_first(tmp_path: Path) -> None:
    for i in range(12):
        write_clip(tmp_path / f"{i:02}.mp4", frames=60 if i % 2 else 4)
    clips = scan_dataset(DatasetPanel(path="."), 0, tmp_path).clips
    assert [Path(c.path).name for c in clips] == [f"{i:02}.mp4" for i in range(12)]
    assert [c.frames for c in clips] == [60 if i % 2 else 4 for i in range(12)]


def test_real_footage() -> None:
    facts = {Path(c.path).name: c for c in scan_dataset(DatasetPanel(path=str(real_clips())), 0, Path("/")).clips}
    seen = {name: (c.frames, c.width, c.height, round(c.fps, 2), c.codec, c.variable_rate) for name, c in facts.items()}
    assert seen == {
        "bikes.mp4": (250, 640, 272, 25.0, "h264", False),
        "bigbuckbunny.mp4": (132, 1280, 720, 25.0, "h264", False),
        "carphone_pristine.mp4": (120, 176, 144, 29.97, "h264", False),
        "carphone_distorted.mp4": (120, 176, 144, 29.97, "h264", False),
    }


def test_knowing_what_clips_are_needs_neither_av_nor_torch() -> None:
    code = (
        "import sys, presets.clips.clip_facts, presets.clips.captions; print([m for m in ('av', 'torch', 'numpy',"
        " 'PIL') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_folder_of_too_many_files_is_refused_before_all_are_listed(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / f"below_{i}").mkdir()
        for name in ("a.txt", "b.png"):
            (tmp_path / f"below_{i}" / name).touch()
    monkeypatch.setattr("presets.clips.clip_facts.MOST_FILES", 4)
    look = Look()
    found = scan_dataset(DatasetPanel(path=str(tmp_path)), 0, tmp_path, look)
    assert [p.code for p in found.problems if p.field == "datasets[0].path"] == ["dataset-too-large"]
    assert found.clips == [] and "more than 4 files" in found.problems[0].message
