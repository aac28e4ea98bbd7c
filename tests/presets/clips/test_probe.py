"""What a file is found to hold, in each container and image format that is taken for a clip."""

from pathlib import Path

import av
import pytest

from presets.clips.clip_facts import VIDEO_SUFFIXES, probe_clip
from presets.clips.damage import whole_frames
from presets.clips.scene_cuts import find_cuts
from presets.clips.video_index import decoded, open_video
from tests.helpers.videos import number_of, write_clip


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.ts", "libx264", {}),
        ("b.ts", "libx265", {}),
        ("a.mts", "libx264", {}),
        ("a.m2ts", "mpeg2video", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {"bf": "2"}),
        ("a.mpeg", "mpeg1video", {}),
        ("a.wmv", "wmv2", {}),
        ("b.wmv", "msmpeg4", {}),
        ("a.3gp", "h263", {}),
        ("b.3gp", "libx264", {}),
        ("a.flv", "flv", {}),
        ("b.flv", "libx264", {}),
    ],
)
def test_the_less_common_containers(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    clip = write_clip(tmp_path / name, frames=50, fps=25, codec=codec, width=176, height=144, options=options)
    facts = probe_clip(clip)
    assert clip.suffix in VIDEO_SUFFIXES
    assert (facts.kind, facts.frames, facts.width, facts.height) == ("video", 50, 176, 144)
    assert facts.duration == pytest.approx(2, abs=0.05)
    find_cuts(clip)


def later(source: Path, path: Path, seconds: int) -> Path:
    """A copy of a transport stream whose times are so much later."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        stream = whole.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts + seconds * 90_000, packet.dts + seconds * 90_000
                packet.stream = copy
                out.mux(packet)
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("first", ["as early", "later"])
def test_streams_put_together_of_two_go_on_where_the_first_one_ends(tmp_path: Path, codec: str, first: str) -> None:
    one = write_clip(tmp_path / "a.ts", frames=48, codec=codec)
    begins = one if first == "as early" else later(one, tmp_path / "later.ts", 20)
    path = tmp_path / "both.ts"
    path.write_bytes(begins.read_bytes() + one.read_bytes())
    facts = probe_clip(path)
    assert (facts.frames, facts.fps, facts.variable_rate) == (96, pytest.approx(24, abs=0.01), False)
    assert facts.duration == pytest.approx(4, abs=0.01)
    assert len(list(whole_frames(path))) == 96
    with open_video(path) as (container, stream):
        numbers = [number_of(f.to_ndarray(format="rgb24")) for f in decoded(container, stream)]
    assert numbers == [*range(48), *range(48)]
