"""Files of tests/media, each of a kind that was once misread: what they are found to be."""

import pytest

from presets.clips.clip_facts import probe_clip
from presets.clips.scene_cuts import find_cuts
from presets.errors import ClipError
from tests.helpers import ROOT

MEDIA = ROOT / "tests" / "media"


@pytest.mark.parametrize(
    ("name", "frames", "width", "height"),
    [
        ("cut_hevc_cra.mkv", 96, 320, 180),
        ("h264_intrarefresh.mp4", 120, 320, 180),
        ("h264_ts.mp4", 72, 320, 180),
        ("thumb_first.mkv", 72, 320, 180),
        ("untag_1280x544.mp4", 5, 1280, 544),
        ("xvid_packed.avi", 70, 320, 180),
        ("zeromatrix.mp4", 72, 320, 180),
    ],
)
def test_sound_files(name: str, frames: int, width: int, height: int) -> None:
    facts = probe_clip(MEDIA / name)
    assert (facts.frames, facts.width, facts.height, facts.rotation) == (frames, width, height, 0)
    assert facts.duration == pytest.approx(frames / 24, abs=0.01) and not facts.variable_rate
    assert facts.untagged_hd == name.startswith("untag")
    assert find_cuts(MEDIA / name) == []


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("dmg_bit_h264.mp4", "clip-unreadable", "is damaged from 1.3 s on"),
        ("dmg_mid_vp9.webm", "clip-unreadable", "is damaged from 2.5 s on"),
        ("dmg_mid_live.mkv", "clip-unreadable", "is damaged from 1.1 s on"),
        ("size_change.mkv", "clip-size-changes", "from 640x360 to 320x180 pixels at 1.5 s"),
    ],
)
def test_files_that_must_not_train(name: str, code: str, words: str) -> None:
    with pytest.raises(ClipError) as caught:
        probe_clip(MEDIA / name)
        find_cuts(MEDIA / name)
    assert caught.value.code == code and words in caught.value.what and caught.value.fix
    assert caught.value.where == str(MEDIA / name)
