"""new, check, train, ara: what needs a job file or a model, and no daemon."""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from daemon.wire.list_messages import PlannedTime
from presets.errors import JobError, UserError
from presets.file_names import expanded
from presets.findings import Finding, of_job_error
from presets.job.fields import toml_text
from presets.job.resume_check import ResumeCheck
from presets.job.schema import DatasetPanel, Job, MergePanel, suggested_name
from presets.job.toml_file import default_out, get_value, job_to_dict, load_job, parse_value, save_job, with_value
from presets.look import Look
from presets.text import sentences, to_type
from wanlora_tui.commands.common import print_json, report_width, say, telling
from wanlora_tui.output.far_words import advised, shown_path
from wanlora_tui.output.formatting import count

if TYPE_CHECKING:
    from daemon.settings import CostSettings
    from presets.clips.clip_facts import DatasetFacts
    from presets.facts.facts import Facts
    from wanlora_tui.draft.forecast import Forecast


def new(args: Namespace) -> int:
    """Write the recommended job, with `--set` applied and prompts made of the clips; prints the file's path or, with
    `--json`, all about it, and the reasons on stderr."""
    from presets.base.composition import named_base
    from presets.base.fetch_plan import fetching_of
    from presets.clips.clip_facts import leave_out, scan_dataset
    from presets.facts.held_out import hold_out
    from presets.facts.loras import start_ranks
    from presets.facts.visits import visits_of
    from presets.machine.machine import read_machine
    from presets.recipes.recommend import recommend
    from wanlora_tui.draft.forecast import for_programs as in_numbers
    from wanlora_tui.draft.forecast import summary

    target: Path = args.out.resolve()
    if target.exists():
        raise UserError("exists already", where=str(args.out), fix="Choose another file with --out, or delete this one")
    clips: Path = args.clips.resolve()
    look = Look()
    with telling(look):
        facts = scan_dataset(DatasetPanel(path=str(clips)), 0, target.parent, look)
    errors = [p for p in facts.problems if p.severity == "error"]
    fatal = errors[0] if not facts.clips and len(errors) == 1 else None
    for problem in facts.problems:
        if problem is not fatal:
            say(f"{problem.severity}: {sentences(problem.message, problem.fix)}")
    if fatal is not None:
        raise UserError(fatal.message, fix=fatal.fix)
    if not facts.clips:
        raise UserError(
            "no readable clip or image in this folder",
            where=str(args.clips),
            fix="Point --clips at a folder of mp4 files, each with a caption of the same name (.txt)",
        )
    inside = clips.is_relative_to(target.parent)
    found = recommend(
        args.kind,
        read_machine(clips),
        facts.clips,
        name=args.name or suggested_name(args.kind, clips.name),
        clips_path=str(clips.relative_to(target.parent)) if inside else str(clips),
    )
    begun = _with_loras(found.job, args, target.parent)
    ranks = start_ranks(begun, target.parent)
    for field, (rank, _) in ranks.items():
        begun = with_value(begun, field, rank)
    job = _with_previews(with_settings(begun, args.set), facts, target.parent, args)
    save_job(job, target)
    reasons = {field: reason for field, (rank, reason) in ranks.items() if get_value(job, field) == rank}
    for field, reason in found.reasons.items():
        # a reason for another value than the user's would confuse
        if get_value(job, field) == get_value(found.job, field):
            reasons.setdefault(field, reason)
    for field, reason in reasons.items():
        say(f"{field} = {toml_text(get_value(job, field))}: {reason}")
    train, _ = hold_out(job, [leave_out(facts, job.datasets[0].exclude)])
    for visits in visits_of(job, train):
        say(f"In {job.training.steps} steps {visits.text}.")
    if job.sample.prompts:
        shown = ", ".join(Path(prompt.ctrl_img).name for prompt in job.sample.prompts)
        say(
            f"{count(len(job.sample.prompts), 'prompt')} for previews, each of a clip's first frame and caption:"
            f" {shown}. "
            + (
                "What they start from does not train."
                if args.hold_out
                else "What they start from trains too, unless --hold-out is given; --previews 0 makes no previews."
            )
        )
    else:
        say(
            "It has no prompts, so it makes no previews: add them to the file as [[sample.prompts]], each with prompt"
            " and ctrl_img (an image, or a clip for its first frame), or use the wizard."
        )
    if (fetching := fetching_of(named_base(job), target.parent)) is not None:
        say(fetching.in_sentences)
    expected, cost = _expected(job, target, leave_out(facts, job.datasets[0].exclude)), _cost(args.dir)
    say(f"{summary(expected, cost)}.")
    if args.json:
        reasoned = [{"field": f, "value": get_value(job, f), "reason": reason} for f, reason in reasons.items()]
        findings, forecast = for_programs(facts.problems), in_numbers(expected, cost)
        print_json(made_file(target, job, reasons=reasoned, findings=findings, forecast=forecast), indented=True)
    else:
        print(args.out)
    where = shown_path(str(args.out), short=False)
    say(f"Look through it, then: {to_type('check', where)} && {to_type('submit', where)}")
    return 0


def made_file(
    path: Path,
    job: Job,
    *,
    reasons: Sequence[dict[str, object]] = (),
    changes: Sequence[dict[str, object]] = (),
    findings: Sequence[dict[str, str]] = (),
    forecast: dict[str, object] | None = None,
) -> dict[str, object]:
    """What `new --json` says of the file that it wrote: the same keys whichever way it was made."""
    return {
        "path": str(path),
        "job": job_to_dict(job),
        "reasons": reasons,
        "changes": changes,
        "findings": findings,
        "forecast": forecast,
    }


def _expected(job: Job, file: Path, clips: "DatasetFacts") -> "Forecast":
    """What the job will take and cost."""
    from presets.base.composition import named_base
    from presets.base.model_facts import read_model
    from presets.facts.facts import Facts
    from presets.machine.machine import read_machine
    from wanlora_tui.draft.forecast import reckon

    named = named_base(job)
    facts = Facts(
        base=file.parent,
        datasets=[clips],
        machine=read_machine(file.parent),
        model=read_model(named, file.parent),
        named=named,
    )
    return reckon(job, facts)


def _cost(folder: Path | None) -> "CostSettings":
    """What an hour of this machine costs, as the settings of the daemon of `folder` say."""
    from wanlora_tui.feeds.run_times import cost_settings

    cost, problem = cost_settings(folder)
    if problem:
        say(f"warning: no price is known: {problem}")
    return cost


def _with_loras(job: Job, args: Namespace, base: Path) -> Job:
    """The job with what `--start`, `--start-low` and `--merge` name; paths below the job file's folder are relative to
    it. Raises UserError."""
    from presets.base.lora_file import read_lora
    from presets.base.lora_metadata import expert_said
    from presets.facts.loras import START_FIELDS, start_fields

    def written(path: Path) -> str:
        path = expanded(path).resolve()
        return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)

    fields = start_fields(expanded(args.start).resolve()) if args.start else {}
    if args.start_low:
        if args.start:
            fields.setdefault(START_FIELDS["high_noise"], str(args.start))
        fields[START_FIELDS["low_noise"]] = str(args.start_low)
    for field, named in fields.items():
        job = with_value(job, field, written(Path(named)))
    merges = []
    for text in args.merge:
        path, strength = _path_and_strength(text)
        read_lora(path)  # what is wrong with the file is said now
        expert = expert_said(path)
        merges.append(MergePanel(path=written(path), strength=strength, expert=expert or "both"))
        say(f"{path.name} is merged into {expert.replace('_', ' ') if expert else 'both experts'}")
    job.model.merge = merges
    return job


def _path_and_strength(text: str) -> tuple[Path, float]:
    """Of `FILE[:STRENGTH]`; a colon that no number follows belongs to the name. Raises UserError."""
    name, colon, number = text.rpartition(":")
    if colon and re.fullmatch(r"-?\d+(\.\d*)?|-?\.\d+", number):
        value = parse_value("model.merge.strength", number)
        return Path(name), float(value)
    return Path(text), 1.0


def with_settings(job: Job, settings: list[str]) -> Job:
    """The job with each `--set FIELD=VALUE`; `datasets.num_frames` means every dataset. A folder of held-out clips
    takes the place of a fraction that is not set as well. Raises UserError."""
    given = set[str]()
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r} has no value", fix="Write it as --set training.lr=5e-5")
        field = field.strip()
        given.add(field)
        rest = field.removeprefix("datasets.")
        for path in [f"datasets[{i}].{rest}" for i in range(len(job.datasets))] if rest != field else [field]:
            job = with_value(job, path, parse_value(path, text))
    if "validation.path" in given and job.validation.path.strip() and "validation.fraction" not in given:
        job = with_value(job, "validation.fraction", 0.0)
    return job


def _with_previews(job: Job, facts: "DatasetFacts", base: Path, args: Namespace) -> Job:
    """The preset asked for, and prompts made of the clips. Raises UserError."""
    from presets.clips.clip_facts import leave_out
    from presets.recipes.clip_prompts import clip_prompts

    if args.preview is not None:
        job = with_value(job, "sample.preset", args.preview)
    if job.sample.preset == "quick" and not (job.sample.accelerator or job.sample.accelerator_low):
        raise UserError(
            "the quick preset is for an accelerator LoRA, and none is named",
            where="--preview quick",
            fix="Add --set sample.accelerator=FILE --set sample.accelerator_low=FILE, or choose official",
        )
    facts = leave_out(facts, job.datasets[0].exclude)
    job.sample.prompts = clip_prompts([(job.datasets[0], facts)], args.previews)
    if args.hold_out:
        if not job.sample.prompts:
            none_asked = "Leave --previews 0 or --hold-out out"
            raise UserError(
                "no preview starts from a clip, so there is none to hold out",
                where="--hold-out",
                fix=none_asked if not args.previews else "Give the clips captions, or leave --hold-out out",
            )
        names = [Path(p.ctrl_img).relative_to(facts.path).as_posix() for p in job.sample.prompts]
        if len(names) == len(facts.clips):
            raise UserError(
                f"holding out {count(len(names), 'clip')} would leave none to train on",
                where="--hold-out",
                fix="Give --previews a smaller number, or leave --hold-out out",
            )
        job.datasets[0].exclude += names
    for prompt in job.sample.prompts:
        path = Path(prompt.ctrl_img)
        prompt.ctrl_img = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
    return job


def check(args: Namespace) -> int:
    """Print every finding, and on stderr what the job will take and cost; 1 when there is an error."""
    from presets.rules.check import check_job, has_errors, render
    from wanlora_tui.draft.forecast import for_programs as in_numbers
    from wanlora_tui.draft.forecast import reckon, summary

    found, cost = None, _cost(args.dir)
    try:
        job = load_job(args.job)
    except JobError as e:
        findings = of_job_error(e)
    else:
        facts = _gathered(job, args.job, out=default_out(args.job), scenes=True, ask_hub=True)
        findings, found = check_job(job, facts), reckon(job, facts)
    errors = has_errors(findings)
    if args.json and args.forecast:
        numbers = in_numbers(found, cost) if found is not None else None
        print_json({"findings": for_programs(findings), "forecast": numbers}, indented=True)
    elif args.json:
        print_json(for_programs(findings), indented=True)
    else:
        print(advised(render(findings, width=report_width(sys.stdout))))
        if found is not None:
            say(fill(f"{summary(found, cost)}.", report_width(sys.stderr), break_on_hyphens=False))
        say(f"{args.job} {'cannot be trained as it is' if errors else 'is ready to train'}.")
    return 1 if errors else 0


def for_programs(findings: list[Finding]) -> list[dict[str, str]]:
    """Findings as `--json` has them."""
    return [
        {"code": f.code, "severity": f.severity, "field": f.field, "message": f.message, "fix": f.fix} for f in findings
    ]


def findings_of(
    path: Path, *, out: Path, scenes: bool, ask_hub: bool = False, accepted: ResumeCheck | None = None
) -> list[Finding]:
    """What the rules say (`scenes`: with a search for damage and cuts, which decodes every clip once; `ask_hub`: with
    what the Hub says of parts to fetch); a job file that cannot be read is reported in the same form, one finding per
    problem."""
    return look_over(path, out=out, scenes=scenes, ask_hub=ask_hub, accepted=accepted)[0]


def look_over(
    path: Path, *, out: Path, scenes: bool, ask_hub: bool = False, accepted: ResumeCheck | None = None
) -> tuple[list[Finding], PlannedTime | None]:
    """The findings, and how long the planner expects the run to take on this machine, as far as it can tell."""
    from presets.rules.check import check_job
    from presets.rules.plan_rules import planned_time

    try:
        job = load_job(path)
    except JobError as e:
        return of_job_error(e), None
    facts = _gathered(job, path, out=out, scenes=scenes, ask_hub=ask_hub, accepted=accepted)
    return check_job(job, facts), planned_time(job, facts)


def _gathered(
    job: Job, path: Path, *, out: Path, scenes: bool, ask_hub: bool, accepted: ResumeCheck | None = None
) -> "Facts":
    from presets.facts.gather import gather

    look = Look()
    with telling(look):
        return gather(job, path.resolve().parent, out=out, scenes=scenes, ask_hub=ask_hub, look=look, accepted=accepted)


def train(args: Namespace) -> int:
    """Become the trainer: its output, its signals and its exit code are the command's own."""
    job = load_job(args.job)  # a mistake in the file is shown at once, not after torch has been imported
    options = ["--out", str(args.out)] if args.out else []
    if args.resume or args.accept_changes or args.from_step is not None:
        from wanlora_tui.commands.resume import agreed_here

        accepted, _ = agreed_here(
            job, args.job.resolve().parent, args.out or default_out(args.job), accepted=args.accept_changes
        )
        options += [
            "--resume",
            *(["--from", str(args.from_step)] if args.from_step is not None else []),
            *(["--accept-changes"] if accepted is not None else []),
        ]
    hold_gpus(job)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine", str(args.job), *options])


def hold_gpus(job: Job) -> None:
    """Have daemons wait for the job's GPUs until the program that this process becomes has ended; say whose some of
    them are already."""
    from presets.machine.gpu_locks import holder_of, lock_gpus
    from presets.machine.gpus import visible_gpus
    from presets.machine.visible_gpus import pick

    numbers = sorted(set(job.job.gpus))
    try:
        names = dict(zip(pick(numbers, visible_gpus()), numbers, strict=False))
    except UserError:  # there is no such GPU, as the trainer will say
        return
    lock, taken = lock_gpus(names, job.job.name)
    lock.leave_to_exec()
    for gpu in taken:
        say(
            f"warning: GPU {names[gpu]} is taken by {holder_of(gpu)}. Both train more slowly there, and may run out of"
            " its memory; the daemon waits for a GPU instead: wanlora submit"
        )


def ara(args: Namespace) -> int:
    """Become the builder of an accuracy recovery adapter, in a process that has torch: its output and its exit code are
    the command's own."""
    line = [args.model, "--rank", str(args.rank), "--precision", args.precision, "--expert", args.expert]
    line += ["--clips", str(args.clips)] if args.clips else []
    line += ["--out", str(args.out)] if args.out else []
    line += ["--full"] if args.full else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine.recovery", *line])
