"""plan: what the memory planner makes of a job, for this machine or a named one.

How it is chosen is presets.planner.choose's.
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator

import msgspec

from presets.errors import UserError
from presets.facts.facts import Facts, masked
from presets.facts.gather import gather
from presets.facts.visits import texts_of, visits_of
from presets.job.fields import toml_text
from presets.job.gpu_shares import never_measured, require_fits, to_be_sure
from presets.job.schema import Job
from presets.job.toml_file import default_out, load_job, with_value
from presets.machine.gpus import Gpu
from presets.machine.machine import WSL, Machine
from presets.machine.torchrun import FIRST_NODE, torchrun_line
from presets.planner.candidates import Candidate
from presets.planner.cards import DRIVER_BYTES, card_hardware, find_card, gpu_hardware, nearest_card
from presets.planner.choose import Choice, DoesNotFit, choose_for
from presets.planner.coefficients import FITTED
from presets.planner.costs import Prediction
from presets.planner.plan import Plan
from presets.planner.remedies import Remedy, remedies
from presets.planner.several_gpus import Shared, share_out, stop_grace
from presets.planner.sizes import GIB
from presets.planner.time_costs import Seconds
from presets.planner.workload import Hardware, Workload, shape_of, workload_of
from presets.text import human
from wanlora_tui.commands.common import print_json, say
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import count, duration, seconds_each

# what lies in host memory, by the names that programs know from --json; people read those of the planner
JSON_NAMES = {"weights": "masters", "activations": "stash"}
WORTH_TELLING = 0.98  # of the time: what adding in any order must save


def plan(args: Namespace) -> int:
    """Print the plan, what it is predicted to take, and the rungs beside it; 1 when nothing fits."""
    job = load_job(args.job)
    gpus = args.gpus or len(set(job.job.gpus))
    if args.torchrun:
        require_fits(job, gpus * args.nodes)
    facts = gather(job, args.job.resolve().parent, out=default_out(args.job), scenes=False)
    assert facts.machine is not None
    if args.torchrun:
        return _torchrun(args, job, facts, facts.machine, gpus)
    hardware = hardware_for(job, facts.machine, card=args.gpu, vram=args.vram, ram=args.ram)
    try:
        shared = share_out(job, facts, hardware, gpus) if max(gpus, job.job.gpus_per_clip) > 1 else None
        choice = shared.choice if shared else choose_for(job, facts, hardware)
    except DoesNotFit as e:
        return _refuse(e, job, facts, hardware, as_json=args.json)
    except UserError as e:
        if not args.json:
            raise
        print_json({"fits": False, "hardware": hardware, "message": e.what, "fix": e.fix}, indented=True)
        return 1
    work = workload_of(job, facts)
    any_order = choose_for(with_value(job, "training.deterministic", False), facts, hardware).prediction.seconds.total
    if args.json:
        print_json(
            {
                "fits": True,
                "hardware": hardware,
                **{f: getattr(choice, f) for f in choice.__struct_fields__},
                "prediction": _for_programs(choice.prediction),
                "seconds_per_step": choice.prediction.seconds.total,
                "seconds_in_any_order": any_order,
                "masked_clips": masked(job, facts),
                "gpus": shared and {f: getattr(shared, f) for f in shared.__struct_fields__ if f != "choice"},
            },
            indented=True,
        )
    else:
        clips, under = sum(len(d.clips) for d in facts.datasets), masked(job, facts)
        seen = texts_of(visits_of(job, facts.datasets))
        for head, text in _lines(choice, hardware, work, any_order, seen=seen):
            print(f"{head:<10} {text}")
        for head, text in _shared_lines(shared, job) if shared else ():
            print(f"{head:<10} {text}")
        if under:
            print(f"{'Masks':<10} {under} of {count(clips, 'clip')} {'has' if under == 1 else 'have'} a loss mask")
    return 0


def _torchrun(args: Namespace, job: Job, facts: Facts, machine: Machine, gpus: int) -> int:
    """Print the command, with as long to save when it is stopped as the plan says."""
    choice, why = None, ""
    try:
        hardware = hardware_for(job, machine, card=args.gpu, vram=args.vram, ram=args.ram)
        choice = share_out(job, facts, hardware, gpus * args.nodes, hosts=args.nodes).choice
    except UserError as e:
        why = e.what
    grace = stop_grace(job, shape_of(facts), gpus * args.nodes, choice)
    print(shlex.join(torchrun_line(str(args.job), gpus, args.nodes, grace=grace)))
    if args.nodes > 1:
        others = "--node-rank=1" if args.nodes == 2 else f"--node-rank=1 to {args.nodes - 1}"
        say(
            f"{FIRST_NODE} is a name or an address by which all nodes reach the first one. That has --node-rank=0, the"
            f" others {others}. The job file, its clips and the run folder have the same paths on all of them"
        )
    if choice is None:
        say(f"When it is stopped it has {grace} s to save. That is for slow steps, for there is no plan: {why}")
    if gpus != len(set(job.job.gpus)):
        say(f"It trains only a job that names {gpus}: job.gpus = {list(range(gpus))}")
    return 0


def hardware_for(job: Job, machine: Machine, *, card: str | None, vram: float | None, ram: float | None) -> Hardware:
    """The machine to plan for: a named card, or the job's GPU here; `vram` and `ram` (GiB) in place of what there is.
    Raises UserError."""
    total = int(vram * GIB) if vram is not None else None
    host = int(ram * GIB) if ram is not None else machine.ram_total
    if card is not None:
        return card_hardware(find_card(card), ram=host, vram=total)
    gpu = next((g for g in machine.gpus if g.index == job.job.gpus[0]), None)
    if gpu is None and total is not None:
        like = nearest_card(total, float8=job.quantization.transformer == "float8")
        found = card_hardware(like, ram=host, vram=total)
        return msgspec.structs.replace(
            found, name=f"a card of {vram:g} GiB", source=f"no card is named: reckoned at the speed of {like.name}"
        )
    found = gpu_hardware(_usable(gpu, job, machine), machine)
    if total is not None:
        found = msgspec.structs.replace(found, vram_total=total, vram_free=total - DRIVER_BYTES)
    return found if ram is None else msgspec.structs.replace(found, ram_total=host, ram_free=host)


def _usable(gpu: Gpu | None, job: Job, machine: Machine) -> Gpu:
    if gpu is None:
        why = machine.gpu_problem or f"there is no GPU {job.job.gpus[0]}" + (
            f" among those that CUDA_VISIBLE_DEVICES={machine.visible} shows" if machine.visible else ""
        )
        raise UserError(
            f"no GPU to plan for ({why})",
            fix="Name a card with --gpu, for instance --gpu 4090, or an amount of memory with --vram",
        )
    if gpu.error:
        raise UserError(gpu.error, where=f"GPU {gpu.index}", fix="Name another card with --gpu")
    return gpu


def _lines(
    choice: Choice, hardware: Hardware, work: Workload, any_order: float, *, seen: list[str]
) -> Iterator[tuple[str, str]]:
    found, bucket = choice.prediction, work.largest.bucket
    yield "GPU", f"{hardware.name}, {human(hardware.vram_free)} of {human(hardware.vram_total)} free; {hardware.source}"
    yield (
        "Work",
        (
            f"{bucket.frames}x{bucket.height}x{bucket.width} at the"
            f" largest{'' if seen else ', as if clips filled their resolutions'},"
            f" {work.largest.batch * bucket.tokens} tokens a batch"
        ),
    )
    if seen:
        yield "Clips", "; ".join(seen)
    yield "Plan", choice.plan.text
    yield "", f"precision {choice.plan.precision}: {choice.why}"
    yield (
        "VRAM",
        (
            f"{human(found.need_vram)} of {human(hardware.vram_free)}; {human(found.peak_vram)} in use at the peak"
            f" ({', '.join(f'{name} {human(size)}' for name, size in found.phases.items())})"
        ),
    )
    yield (
        "RAM",
        (
            f"{human(found.ram)} of {human(hardware.ram_free)}"
            f" ({', '.join(f'{name} {human(size)}' for name, size in found.ram_held.items() if size)})"
        ),
    )
    if not choice.plan.pinned:
        yield (
            "",
            f"{WSL}: reckoned without, copies at {FITTED.unlocked:g} of their rate (the run tries how much it gets)",
        )
    yield "Step", _seconds(found.seconds)
    if any_order < WORTH_TELLING * found.seconds.total:
        yield (
            "",
            (
                f"adding in a fixed order; with training.deterministic = false {seconds_each(any_order)} s"
                f" ({(any_order / found.seconds.total - 1) * 100:+.0f}%), and no exact resume"
            ),
        )
    if len(work.loads) > 1:
        yield "", f"largest bucket: {_seconds(found.largest)}"
    if work.previews:
        previews = work.previews.prompts * work.previews.sets
        yield (
            "Previews",
            f"{duration(found.preview)} each, {count(previews, 'preview')} in {count(work.previews.sets, 'set')}",
        )
    if work.validation:
        times, share = work.validation.times, work.validation.times * found.validation / found.total
        clips = count(max(1, round(sum(n for _, n in work.validation.clips))), "clip")
        yield (
            "Held out",
            f"{duration(found.validation)} for {clips}, {count(times, 'measurement')}: {share:.1%} of the time",
        )
    yield "Total", f"{duration(found.total)} for {count(work.steps, 'step')}, previews and checkpoints included"
    if choice.graphs is not None and choice.launched is not None:
        yield "Graphs", _graphs(choice.plan, choice.graphs, choice.launched)
    yield "Up", _rung(choice.up, found.seconds.total, "needs") if choice.up else "nothing faster, whatever the memory"
    yield "Down", _rung(choice.down, found.seconds.total, "would do with") if choice.down else "nothing smaller"


def _shared_lines(shared: Shared, job: Job) -> Iterator[tuple[str, str]]:
    """What several GPUs make of it."""
    yield "GPUs", f"{shared.gpus}: {shared.how}"
    alike: dict[tuple[str, str], list[int]] = {}
    for share in shared.shares:
        alike.setdefault((human(share.need_vram), human(share.ram)), []).append(share.rank)
    for (vram, ram), ranks in alike.items():
        which = "all" if len(ranks) == shared.gpus else "the first" if ranks == [0] else "each other"
        yield "", f"{which}: {vram} of VRAM, {ram} of RAM"
    if shared.received:
        yield (
            "",
            (
                f"{human(shared.received)} of gradients to each in a step, {seconds_each(shared.exchange_seconds)} s at"
                f" {shared.link_gbps:.0f} GB/s (NVLink is faster)"
            ),
        )
    if shared.turned:
        yield (
            "",
            f"{human(shared.turned)} of tokens and heads to each in a step, {seconds_each(shared.turn_seconds)} s",
        )
    yield "", f"a step takes {seconds_each(shared.seconds_per_step)} s in the mean"
    yield "", f"{duration(shared.total)} in all: {shared.times_as_fast:.2f} times as fast as one of them"
    if what := never_measured(job, shared.gpus):
        yield "", f"reckoned: {what}"
        yield "", to_be_sure(job, shared.gpus)


def _seconds(s: Seconds) -> str:
    parts = {"transformer": s.transformer, "VAE": s.vae, "other": s.other}
    copies = "copies hidden" if s.copies_hidden else f"waiting for copies {seconds_each(s.copies)}"
    return (
        f"{seconds_each(s.total)} s: {', '.join(f'{name} {seconds_each(value)}' for name, value in parts.items())},"
        f" {copies}"
    )


def _graphs(plan: Plan, graphs: Candidate, launched: Candidate) -> str:
    """Whether blocks run as CUDA graphs, and what the other way would take."""
    of, other = f"blocks of up to {graphs.plan.graphed} tokens", launched if plan.graphed else graphs
    change = (other.seconds / (graphs if plan.graphed else launched).seconds - 1) * 100
    takes = f"{seconds_each(other.seconds)} s a step ({change:+.0f}%) in {human(other.need_vram)} of VRAM"
    if plan.graphed:
        return f"{of} are CUDA graphs; without (model.cuda_graphs = false) {takes}"
    return f"not taken; were {of} CUDA graphs (model.cuda_graphs = true), {takes}"


def _rung(rung: Candidate, seconds: float, verb: str) -> str:
    change = (rung.seconds / seconds - 1) * 100
    return (
        f"{seconds_each(rung.seconds)} s a step ({change:+.0f}%) {verb} {human(rung.need_vram)} of VRAM:"
        f" {rung.plan.text}"
    )


def _refuse(error: DoesNotFit, job: Job, facts: Facts, hardware: Hardware, *, as_json: bool) -> int:
    """Tell why nothing fits, and what would help."""
    turns = remedies(job, facts, hardware, short=error.short)
    if as_json:
        print_json(
            {
                "fits": False,
                "hardware": hardware,
                "message": error.what,
                "fix": error.fix,
                "short": error.short,
                "plan": error.plan,
                "prediction": _for_programs(error.smallest),
                "knobs": turns,
            },
            indented=True,
        )
        return 1
    print(advised(f"wanlora: {error}"), file=sys.stderr)
    for knob in turns:
        print(f"  {_knob(knob)}", file=sys.stderr)
    return 1


def _for_programs(found: Prediction) -> Prediction:
    """The same, with the names of JSON_NAMES."""
    held = {JSON_NAMES.get(name, name): size for name, size in found.ram_held.items()}
    return msgspec.structs.replace(found, ram_held=held)


def _knob(knob: Remedy) -> str:
    change = ", ".join(f"{path} = {toml_text(value)}" for path, value in knob.set.items())
    return f"{change}: {human(knob.need_vram)} of VRAM, {human(knob.need_ram)} of RAM{', fits' if knob.fits else ''}"
