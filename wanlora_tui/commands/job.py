"""new, check, train, ara: what needs a job file or a model, and no daemon."""

import os
import sys
from argparse import Namespace
from pathlib import Path

from presets.errors import JobError, UserError
from presets.findings import Finding, of_job_error
from presets.job.fields import toml_text
from presets.job.resume_check import ResumeCheck
from presets.job.schema import DatasetPanel, Job, suggested_name
from presets.job.toml_file import default_out, get_value, load_job, parse_value, save_job, with_value
from presets.text import sentences
from wanlora_tui.commands.common import print_json, report_width, say


def new(args: Namespace) -> int:
    """Write the recommended job, with `--set` applied; prints the file's path, and the reasons on stderr."""
    from presets.base.composition import named_base
    from presets.base.fetch_plan import fetching_of
    from presets.clips.clip_facts import scan_dataset
    from presets.machine.machine import read_machine
    from presets.recipes.recommend import recommend

    target: Path = args.out.resolve()
    if target.exists():
        raise UserError("exists already", where=str(args.out), fix="Choose another file with --out, or delete this one")
    clips: Path = args.clips.resolve()
    facts = scan_dataset(DatasetPanel(path=str(clips)), 0, target.parent)
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
    job = _with_settings(found.job, args.set)
    save_job(job, target)
    for field, reason in found.reasons.items():
        # a reason for another value than the user's would confuse
        if (value := get_value(job, field)) == get_value(found.job, field):
            say(f"{field} = {toml_text(value)}: {reason}")
    if not job.sample.prompts:
        say(
            "It has no prompts, so it makes no previews: add them to the file as [[sample.prompts]], each with prompt"
            " and ctrl_img, or use the wizard."
        )
    if (fetching := fetching_of(named_base(job), target.parent)) is not None:
        say(fetching.in_sentences)
    print(args.out)
    say(f"Look through it, then: wanlora check {args.out} && wanlora submit {args.out}")
    return 0


def _with_settings(job: Job, settings: list[str]) -> Job:
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting!r} has no value", fix="Write it as --set training.lr=5e-5")
        field = _first_dataset(field.strip())
        job = with_value(job, field, parse_value(field, text))
    return job


def _first_dataset(field: str) -> str:
    """`datasets.num_frames` means the only dataset that a new job has."""
    return "datasets[0]." + field.removeprefix("datasets.") if field.startswith("datasets.") else field


def check(args: Namespace) -> int:
    """Print every finding; 1 when there is an error."""
    from presets.rules.check import has_errors, render

    findings = findings_of(args.job, out=default_out(args.job), scenes=True, ask_hub=True)
    errors = has_errors(findings)
    if args.json:
        shown = [
            {"code": f.code, "severity": f.severity, "field": f.field, "message": f.message, "fix": f.fix}
            for f in findings
        ]
        print_json(shown, indented=True)
    else:
        print(render(findings, width=report_width(sys.stdout)))
        say(f"{args.job} {'cannot be trained as it is' if errors else 'is ready to train'}.")
    return 1 if errors else 0


def findings_of(
    path: Path, *, out: Path, scenes: bool, ask_hub: bool = False, accepted: ResumeCheck | None = None
) -> list[Finding]:
    """What the rules say (`scenes`: with a search for damage and cuts, which decodes every clip once; `ask_hub`: with
    what the Hub says of parts to fetch); a job file that cannot be read is reported in the same form, one finding per
    problem."""
    from presets.facts.gather import gather
    from presets.rules.check import check_job

    try:
        job = load_job(path)
    except JobError as e:
        return of_job_error(e)
    base = path.resolve().parent
    return check_job(job, gather(job, base, out=out, scenes=scenes, ask_hub=ask_hub, accepted=accepted))


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
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine", str(args.job), *options])


def ara(args: Namespace) -> int:
    """Become the builder of an accuracy recovery adapter, in a process that has torch: its output and its exit code are
    the command's own."""
    line = [args.model, "--rank", str(args.rank), "--precision", args.precision, "--expert", args.expert]
    line += ["--clips", str(args.clips)] if args.clips else []
    line += ["--out", str(args.out)] if args.out else []
    line += ["--full"] if args.full else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "engine.recovery", *line])
