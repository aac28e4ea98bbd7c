"""Whole jobs of the real shape on one card: load, train, checkpoint, preview, under several caps of the card's memory.

    python -m benchmarks.whole_job --dir /dev/shm/wl --json whole.json          (an NVIDIA card, 100 GiB of RAM, 60 GiB
    of disk)
    python -m benchmarks.whole_job --tiny --dir /tmp/wl                          (the same code on the CPU)
    python -m benchmarks.whole_job --dir /dev/shm/wl --start --merge --caps none (from LoRAs that are there already)

Writes a base of random weights, a text encoder that is only as wide as the
real one, and clips; then runs `python -m engine` once per cap. Both experts train, switch_every 1, with previews of 41
frames at 768 x 768 at the end. The first job quantizes and fills the weight cache; the others start from it. With
--start both LoRAs go on from random ones in other trainers' keys, with --merge a third one becomes part of both
experts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.loading import FULL, write_expert
from benchmarks.random_expert import TINY
from engine.adapters.lora import wan_name
from engine.demo.tiny_base import build_tiny
from engine.wan.block import linear_shapes
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    MergePanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    SamplePanel,
    SavePanel,
    TargetPanel,
    TrainingPanel,
)
from presets.job.toml_file import save_job
from presets.runs.events import read_events


def write_base(folder: Path, *, tiny: bool) -> Path:
    """A complete diffusers folder; the real shape unless `tiny`."""
    from diffusers import AutoencoderKLWan

    config = TINY if tiny else FULL
    build_tiny(folder, text_dim=config.get("text_dim", 4096))
    for part in ("transformer", "transformer_2"):
        shutil.rmtree(folder / part)
        write_expert(folder, config, part)
    if not tiny:
        torch.manual_seed(0)
        AutoencoderKLWan().to(torch.bfloat16).save_pretrained(folder / "vae")
    return folder


def write_clips(folder: Path, *, height: int, width: int, frames: int, count: int = 12) -> None:
    """A square that crosses noise, each clip its own way."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(60, 190, (height, width, 3), dtype=np.uint8)
        with av.open(str(folder / f"{number:02}.mp4"), "w") as out:
            stream: Any = out.add_stream("libx264", rate=16, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(frames):
                picture = noise.copy()
                at = (i * height // frames + number * 17) % (height - height // 4)
                picture[at : at + height // 4, width // 3 : width // 2] = (230, 40, 40)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
        (folder / f"{number:02}.txt").write_text(f"a red square crosses, take {number}")


def write_loras(folder: Path, base: Path, rank: int = 16) -> None:
    """Three LoRAs whose B is not zero: for high noise in musubi's keys with alpha = rank / 2, for low noise in
    diffusers' keys, and one to merge in ComfyUI's."""
    config = json.loads((base / "transformer" / "config.json").read_text())
    generator = torch.Generator().manual_seed(1)
    made: dict[str, dict[str, torch.Tensor]] = {"high": {}, "low": {}, "merged": {}}
    for i in range(config["num_layers"]):
        for linear, (outputs, inputs) in linear_shapes(config).items():
            module = f"blocks.{i}.{linear}"
            flat = "lora_unet_" + wan_name(module).replace(".", "_")
            stems = {"high": flat, "low": f"transformer.{module}", "merged": f"diffusion_model.{wan_name(module)}"}
            for name, stem in stems.items():
                down, up = ("lora_down", "lora_up") if name == "high" else ("lora_A", "lora_B")
                a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
                made[name] |= {f"{stem}.{down}.weight": a.bfloat16() * 0.02, f"{stem}.{up}.weight": b.bfloat16() * 0.02}
            made["high"][f"{flat}.alpha"] = torch.tensor(rank / 2)
    for name, tensors in made.items():
        save_file(tensors, folder / f"{name}.safetensors")


def write_job(folder: Path, base: Path, name: str, args: argparse.Namespace) -> Path:
    side, frames, preview = (64, 5, 64) if args.tiny else (args.side, 41, 768)
    from PIL import Image

    Image.new("RGB", (preview, preview), (90, 120, 60)).save(folder / "control.png")
    job = Job(
        job=JobPanel(name=name),
        model=ModelPanel(path=str(base), merge=[MergePanel(path="merged.safetensors", strength=0.5)] * args.merge),
        target=TargetPanel(
            start_high="high.safetensors" if args.start else "", start_low="low.safetensors" if args.start else ""
        ),
        multistage=MultistagePanel(switch_every=args.switch_every),
        save=SavePanel(every=args.steps),
        training=TrainingPanel(steps=args.steps, deterministic=args.deterministic),
        datasets=[DatasetPanel(path="clips", num_frames=frames, resolutions=[side], sampling="realtime")],
        sample=SamplePanel(
            every=0,
            first=False,
            width=preview,
            height=preview,
            num_frames=frames,
            steps=args.preview_steps,
            prompts=[PromptPanel(prompt="a red square", ctrl_img="control.png")],
        ),
    )
    path = folder / f"{name}.toml"
    save_job(job, path)
    return path


def summary(run: Path, began: float, cap: str) -> dict[str, Any]:
    events = [e for e, _ in read_events(run / "events.jsonl")]
    steps = [e for e in events if e.kind == "step"]
    found: dict[str, Any] = {
        "case": "whole job",
        "cap_gib": cap,
        "end": events[-1].kind,
        "cause": events[-1].data.get("cause", ""),
        "plan": "",
        "replanned": [e.data["new"] for e in events if e.kind == "replanned"],
    }
    found["log"] = [e.data["text"] for e in events if e.kind == "log"]
    found["findings"] = [e.data["message"] for e in events if e.kind == "finding" and e.data["severity"] != "advice"]
    for event in events:
        if event.kind == "started":
            found["plan"], found["seconds_to_started"] = event.data["plan"], event.time - began
    if steps:
        late = steps[len(steps) // 2 :]
        found["seconds_to_first_step"] = steps[0].time - began
        found["seconds_per_step"] = median(e.data["seconds"]["total"] for e in late)
        found["parts"] = {part: median(e.data["seconds"][part] for e in late) for part in late[0].data["seconds"]}
        found["outside_share"] = 1 - found["parts"]["transformer"] / found["seconds_per_step"]
        found["peak_reserved_gib"] = max(e.data["vram_gib"] for e in steps)
        found["ram_gib"] = max(e.data["ram_gib"] for e in steps)
        found["losses"] = [round(e.data["loss"], 4) for e in steps]
    saved, made = ([e for e in events if e.kind == kind] for kind in ("checkpoint", "sample"))
    if made:
        found["preview_seconds"] = made[-1].time - saved[-1].time
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--caps", nargs="*", default=["none", "24", "10"], help="GiB of the card that each job may use")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--switch-every", type=int, default=1)
    parser.add_argument("--preview-steps", type=int, default=4)
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="attention's backward in a fixed order",
    )
    parser.add_argument("--start", action="store_true", help="go on from LoRAs")
    parser.add_argument("--merge", action="store_true", help="merge a LoRA into the base")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    base = args.dir / "base"
    if not base.exists():
        start = time.time()
        write_base(base, tiny=args.tiny)
        side = 64 if args.tiny else args.side
        write_clips(args.dir / "clips", height=side, width=side, frames=12 if args.tiny else 49)
        write_loras(args.dir, base)
        print(f"base, clips and LoRAs written in {time.time() - start:.0f} s", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rows = []
    for cap in args.caps:
        more = "-start" * args.start + "-merge" * args.merge
        path = write_job(args.dir, base, f"cap-{cap}-{args.side}-{args.switch_every}{more}", args)
        began = time.time()
        command = [sys.executable, "-m", "engine", str(path), *([] if cap == "none" else ["--vram", cap])]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        row = {
            "exit": done.returncode,
            "seconds": time.time() - began,
            **summary(args.dir / "runs" / path.stem, began, cap),
        }
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
        if done.returncode:
            print(done.stderr[-3000:], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
