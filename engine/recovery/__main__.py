"""`wanlora ara`: builds an accuracy recovery adapter for the quantized base, and says what it recovers.

    python -m engine.recovery MODEL [--rank N] [--precision qint4] [--clips DIR [--full]] [--out FILE] [--expert
    both|high|low]

stdout gets the file's path and a table of errors without and with the adapter, stderr the progress. The work is in
`engine.recovery.build`; a job's adapter is read by `engine.adapters.recovery_file`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from engine.wan.quantize import GRIDS, Grid
from presets.disk import not_writable
from presets.errors import UserError
from presets.text import escape_output, human, write_over

FRAMES, RESOLUTION = 17, 512  # of calibration clips
EXPERT_CHOICES = ("both", "high", "low")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="wanlora ara",
        description=(
            "Build an accuracy recovery adapter: the best low-rank correction of what quantizing the base loses."
        ),
    )
    parser.add_argument("model", help="folder or Hub id of the base model")
    parser.add_argument("--rank", type=int, default=16, help="rank of the correction (default: 16)")
    parser.add_argument(
        "--precision",
        choices=GRIDS,
        default="qint4",
        help="qint4, or uint4: torchao's grid, on which published adapters work (default: qint4)",
    )
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="a few clips with captions: weigh errors by what the model sees on them",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="with --clips: weigh by how channels vary together, not each by itself (slower, better)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the adapter (default: ara-INT4-rRANK.safetensors)")
    parser.add_argument(
        "--expert", choices=EXPERT_CHOICES, default="both", help="which expert to correct (default: both)"
    )
    escape_output()
    args = parser.parse_args(argv)
    try:
        build(
            args.model,
            rank=args.rank,
            grid=args.precision,
            clips=args.clips,
            full=args.full,
            out=args.out or default_adapter(args.precision, args.rank, args.expert),
            expert=args.expert,
        )
    except UserError as e:
        print(f"wanlora: {e}", file=sys.stderr)
        return 1
    return 0


def default_adapter(grid: Grid, rank: int, expert: str) -> Path:
    return Path(f"ara-{grid}-r{rank}{'' if expert == 'both' else f'-{expert}_noise'}.safetensors")


def build(model: str, *, rank: int, grid: Grid, clips: Path | None, full: bool, out: Path, expert: str) -> None:
    """Check, build, write, and print the path and the table. Raises UserError before any work where it can."""
    _check_options(rank=rank, clips=clips, full=full, out=out)

    from presets.base.composition import named_base
    from presets.base.model_facts import read_model
    from presets.facts.facts import is_tiny
    from presets.job.expert_schedule import EXPERTS, Expert
    from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, MultistagePanel
    from presets.machine.machine import read_machine

    wanted: list[Expert] = [e for e in EXPERTS if expert in ("both", e.removesuffix("_noise"))]
    job = Job(
        job=JobPanel(name="ara"),
        model=ModelPanel(path=model),
        multistage=MultistagePanel(high_noise="high_noise" in wanted, low_noise="low_noise" in wanted),
        datasets=[
            DatasetPanel(path=str(clips.resolve()) if clips else ".", num_frames=FRAMES, resolutions=[RESOLUTION])
        ],
    )
    facts, machine = read_model(named_base(job), Path.cwd()), read_machine(Path.cwd())
    for problem in facts.problems:
        if problem.severity == "error":
            raise UserError(problem.message, where=model, fix=problem.fix)

    # with diffusers, which takes seconds: a model that is not there is told before
    from engine.adapters.recovery_file import save_ara
    from engine.memory.out_of_memory import open_device_with_room
    from engine.recovery.build import Report, build_expert
    from engine.recovery.calibrate import CalibrationSample, samples_from_clips
    from engine.recovery.expert_reader import ExpertReader
    from engine.system.device import require_gpu
    from engine.system.placement import Placement
    from engine.weights.base_model import find_base_model

    device = open_device_with_room(None, vram=None)
    if machine.gpus and not is_tiny(facts):  # without a GPU it is known to be slow
        require_gpu(device, machine)
    base = find_base_model(job, Path.cwd(), progress=lambda _done, _total, text: _say(text), say=_say)
    readers = [ExpertReader(base.source, e) for e in wanted]
    _check_sizes(readers[0].shapes, blocks=sum(reader.blocks for reader in readers), rank=rank, out=out)

    placement = Placement.on(device, pinned=False)
    samples: dict[Expert, list[CalibrationSample]] = {}
    if clips is not None:
        samples = samples_from_clips(
            job, base, placement, lambda done, total, what: _say(f"calibration: {what} {done}/{total}")
        )
    report = Report()
    lora = {
        reader.expert: build_expert(
            reader,
            placement,
            rank=rank,
            grid=grid,
            samples=samples.get(reader.expert, []),
            full=full,
            report=report,
            progress=lambda done, total, e=reader.expert: _say(f"{e.replace('_', ' ')}: block {done}/{total}"),  # type: ignore[misc]
        )
        for reader in readers
    }
    weighting = "none" if clips is None else "full" if full else "diagonal"
    identities = {e: base.identity_of(e) for e in wanted}
    save_ara(out, lora, rank=rank, grid=grid, identities=identities, base=model, weighting=weighting)
    print(out)
    print(report.table())
    print(f'Train on it with quantization.transformer = "qint4+ara" and quantization.ara = "{out}"', file=sys.stderr)


def _check_options(*, rank: int, clips: Path | None, full: bool, out: Path) -> None:
    """Raises UserError."""
    if rank < 1:
        raise UserError(f"the rank must be at least 1, not {rank}", where="--rank", fix="Give --rank 16")
    if full and clips is None:
        raise UserError("needs calibration clips", where="--full", fix="Add --clips DIR, or leave --full out")
    if out.suffix != ".safetensors":
        raise UserError(
            "must end in .safetensors", where=f"--out {out}", fix=f"Write it as --out {out.with_suffix('.safetensors')}"
        )
    if out.exists():
        raise UserError("exists already", where=str(out), fix="Choose another file with --out, or delete this one")
    if not out.absolute().parent.is_dir():
        raise UserError("no such folder", where=str(out.parent), fix="Make it first, or choose another file with --out")
    if why := not_writable(out.parent):
        raise UserError(f"cannot be written: {why}", where=str(out), fix="Choose another file with --out")


def _check_sizes(shapes: dict[str, tuple[int, int]], *, blocks: int, rank: int, out: Path) -> None:
    """The rank against the linears of a block, the adapter against the disk. Raises UserError."""
    smallest = min(min(shape) for shape in shapes.values())
    if rank > smallest:
        raise UserError(
            f"rank {rank} is more than the model's smallest linear has ({smallest})",
            where="--rank",
            fix=f"Give --rank {min(16, smallest)}",
        )
    need = sum(2 * rank * (n + k) for n, k in shapes.values()) * blocks
    if (free := shutil.disk_usage(out.absolute().parent).free) < need:
        raise UserError(
            f"the disk has {human(free)} free, the adapter takes {human(need)}",
            where=str(out),
            fix="Free some space, or choose another disk with --out",
        )


def _say(text: str) -> None:
    """Progress: one line that is written over on a terminal, lines otherwise."""
    if sys.stderr.isatty():
        write_over(text, sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
