"""The video and the poster of a preview: what they hold, and whether they are whole."""

import av
import numpy as np
from PIL import Image

from engine.preview.video_files import is_picture, is_video, read_small, write_poster, write_video


def test_video_and_poster_hold_the_frames(tmp_path):
    frames = np.stack([np.full((32, 48, 3), 20 * i, np.uint8) for i in range(9)])
    write_video(tmp_path / "a.mp4", frames, 16)
    write_poster(tmp_path / "a.png", frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.average_rate) == ("h264", 48, 32, 16)
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(decoded) == 9
    assert all(abs(float(d.mean()) - 20 * i) < 4 for i, d in enumerate(decoded))
    assert np.asarray(Image.open(tmp_path / "a.png")).mean() == 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.png"]


def test_a_picture_and_a_video_are_whole_or_not(tmp_path):
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8), 16)
    write_poster(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8))
    assert read_small(tmp_path / "a.mp4").shape == (3, 32, 48, 3) and read_small(tmp_path / "missing.mp4") is None
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: int.from_bytes(content[:4])])
    assert not is_video(tmp_path / "b.mp4"), "a whole first box is no film"
    for name, whole in (("a.mp4", is_video), ("a.png", is_picture)):
        path = tmp_path / name
        content = path.read_bytes()
        assert whole(path) and not whole(tmp_path / "gone")
        for n in (0, 1, 7, 8, 20, len(content) // 2, len(content) - 5):
            path.write_bytes(content[:n])
            assert not whole(path), n
        path.write_bytes(bytes(len(content)))
        assert not whole(path)
