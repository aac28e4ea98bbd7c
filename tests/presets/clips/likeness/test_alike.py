"""Clips that are there twice: as copies, as links, as another export."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from presets.clips.clip_facts import probe_clip, scan_dataset
from presets.clips.likeness.alike import WORDS, copies, look_alike, print_of
from presets.job.schema import DatasetPanel
from presets.look import Look, LookEnded
from tests.helpers.videos import Picture, write_clip


def scene(seed: int, width: int = 160, height: int = 96):
    """A soft picture of its own that moves to the side."""
    fields = np.random.default_rng(seed).uniform(0, 255, (6, 10, 3)).astype(np.uint8)
    whole = np.asarray(Image.fromarray(fields).resize((160, 96), Image.Resampling.BICUBIC))

    def picture(i: int) -> Picture:
        moved = Image.fromarray(np.ascontiguousarray(np.roll(whole, 2 * i, axis=1)))
        return np.asarray(moved.resize((width, height)))

    return picture


def seen(path: Path) -> list[int]:
    clip = probe_clip(path)
    return print_of(path, clip.kind, clip.duration)


def scanned(folder: Path):
    return scan_dataset(DatasetPanel(path=str(folder)), 0, folder)


def test_another_export_looks_alike_and_another_scene_does_not(tmp_path):
    one = write_clip(tmp_path / "one.mp4", width=160, height=96, picture=scene(1))
    again = write_clip(tmp_path / "again.mkv", width=96, height=64, picture=scene(1, 96, 64), options={"crf": "34"})
    other = write_clip(tmp_path / "other.mp4", width=160, height=96, picture=scene(2))
    prints = [seen(one), seen(other), seen(again)]
    assert all(len(p) == 3 * WORDS for p in prints)
    assert look_alike(prints, [2.0, 2.0, 2.0]) == [[0, 2]]
    assert look_alike(prints, [2.0, 2.0, 4.0]) == [], "a clip of another length is another one"


def test_images_look_alike_too_and_flat_pictures_like_nothing(tmp_path):
    Image.fromarray(scene(1)(0)).save(tmp_path / "a.png")
    Image.fromarray(scene(1, 80, 48)(0)).save(tmp_path / "b.jpg", quality=60)
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "flat.png")
    prints = [seen(tmp_path / name) for name in ("a.png", "b.jpg", "flat.png", "flat.png")]
    assert prints[2] == []
    assert look_alike(prints, [0.0] * 4) == [[0, 1]]


def test_the_same_shapes_in_other_colours_are_another_scene(tmp_path):
    picture = scene(1)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    Image.fromarray(np.clip(picture(0) * (0.8, 1.0, 1.2), 0, 255).astype(np.uint8)).save(tmp_path / "b.png")
    assert look_alike([seen(tmp_path / "a.png"), seen(tmp_path / "b.png")], [0.0, 0.0]) == []


def test_groups_of_many(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 2**63, (1000, 3 * WORDS), dtype=np.uint64)
    prints = [[int(n) for n in row] for row in numbers]
    prints[500] = [prints[3][0] ^ 0b1011, *prints[3][1:]]
    prints[900] = list(prints[3])
    assert look_alike(prints, [1.0] * 1000) == [[3, 500, 900]]


def test_copies_are_files_of_the_same_bytes(tmp_path):
    a = write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(a.read_bytes())
    os.link(a, tmp_path / "c.mp4")
    changed = bytearray(a.read_bytes())
    changed[-1] ^= 1  # of one size, and not the same
    found = scanned(tmp_path)
    groups = copies(found.clips, Look())
    assert [[Path(p).name for p in group] for group in groups] == [["a.mp4", "b.mp4", "c.mp4"]]
    (tmp_path / "b.mp4").write_bytes(bytes(changed))
    assert [[Path(p).name for p in group] for group in copies(found.clips, Look())] == [["a.mp4", "c.mp4"]]


def test_a_look_for_copies_can_be_ended(tmp_path):
    a = write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(a.read_bytes())
    look = Look()
    look.end()
    with pytest.raises(LookEnded):
        copies(scanned(tmp_path).clips, look)


def test_a_link_to_a_clip_of_the_folder_counts_once_and_is_named(tmp_path):
    write_clip(tmp_path / "z.mp4")
    (tmp_path / "z.txt").write_text("orbit")
    (tmp_path / "a.mp4").symlink_to("z.mp4")
    found = scanned(tmp_path)
    assert [Path(c.path).name for c in found.clips] == ["z.mp4"], "the file itself stays, whatever the names"
    (advice,) = [p for p in found.problems if p.code == "clip-linked-twice"]
    assert "1 link" in advice.message and "a.mp4 (z.mp4)" in advice.message
    assert found.concerned[str(tmp_path / "a.mp4")] == [str(tmp_path / "a.mp4")], "exclude may name it"


def test_a_link_with_words_of_its_own_is_a_clip_of_its_own(tmp_path):
    write_clip(tmp_path / "z.mp4")
    (tmp_path / "z.txt").write_text("orbit")
    (tmp_path / "a.mp4").symlink_to("z.mp4")
    (tmp_path / "a.txt").write_text("orbit to the left")
    found = scanned(tmp_path)
    assert [(Path(c.path).name, c.caption) for c in found.clips] == [("a.mp4", "orbit to the left"), ("z.mp4", "orbit")]
    assert not [p for p in found.problems if p.code == "clip-linked-twice"]


def test_two_links_to_a_file_elsewhere_count_once(tmp_path):
    (tmp_path / "clips").mkdir()
    far = write_clip(tmp_path / "far.mp4")
    for name in ("a", "b"):
        (tmp_path / "clips" / f"{name}.mp4").symlink_to(far)
    assert [Path(c.path).name for c in scanned(tmp_path / "clips").clips] == ["a.mp4"]
