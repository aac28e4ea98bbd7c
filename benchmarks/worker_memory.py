"""What a data worker holds in memory on 4K clips, and how long it computes, beside another checkout's.

python -m benchmarks.worker_memory --before CHECKOUT [--decodes 16] [--threads 4]

A worker's own function decodes 41 frames of each of three 4K clips (H.264, HEVC, VP9; written here) again and again, in
a process of its own for each checkout. Prints its largest resident set, the largest between two clips, and CPU seconds
per clip.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from engine.data.decode_worker import Task, perform
from engine.data.frames import DecodeRequest
from presets.clips.geometry import Bucket

CODECS = {"h264.mp4": "libx264", "hevc.mp4": "libx265", "vp9.webm": "libvpx-vp9"}
OPTIONS = {
    "libx264": {"preset": "ultrafast", "x264-params": "ref=4:bframes=2"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"},
}
BUCKET = Bucket(41, 368, 656)
HERE = Path(__file__).parents[1]


def write(path: Path, codec: str, frames: int = 60) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2160 // 8, 3840 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30, options=OPTIONS[codec])
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(noise, i * 4, 1)), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def status(what: str) -> float:
    """MB, of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024


def work(clips: list[Path], decodes: int, threads: int) -> None:
    """Decode in this process, as a worker does; prints the three numbers."""
    memory = memoryview(bytearray(BUCKET.frames * BUCKET.height * BUCKET.width * 3))
    begin, between = time.process_time(), 0.0
    for i in range(decodes):
        request = DecodeRequest(str(clips[i % len(clips)]), "video", BUCKET, "uniform", 0.0, False, False)
        answer = perform(Task(request, 0), memory, threads=threads)
        assert not answer.what and not answer.bug, answer
        between = max(between, status("VmRSS"))
    print(f"{status('VmHWM'):.0f} {between:.0f} {(time.process_time() - begin) / decodes:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--decodes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--clips", type=Path, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clips:
        work(args.clips, args.decodes, args.threads)
        return 0
    print(f"PyAV {av.__version__}, Python {platform.python_version()}, {args.decodes} decodes, {args.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        clips = []
        for name, codec in CODECS.items():
            write(Path(folder) / name, codec)
            clips.append(Path(folder) / name)
        print(f"{'clips':<12}{'checkout':<10}{'peak MB':>9}{'between MB':>12}{'CPU s/clip':>12}")
        for chosen in ([clips[0]], [clips[1]], [clips[2]], clips):
            for which, tree in (("before", args.before), ("this", HERE)):
                command = [sys.executable, __file__, "--before", tree, "--decodes", str(args.decodes)]
                command += ["--threads", str(args.threads), "--clips", *chosen]
                environment = os.environ | {"PYTHONPATH": str(tree)}
                found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                peak, between, seconds = found.stdout.split()
                name = chosen[0].stem if len(chosen) == 1 else "all three"
                print(f"{name:<12}{which:<10}{peak:>9}{between:>12}{seconds:>12}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
