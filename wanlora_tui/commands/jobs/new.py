"""`wanlora new`, and with `--from JOB` a job file that is another's copy but for what `--name` and `--set` say.

A job file made of clips is wanlora_tui.commands.job's; the copy in the wizard wanlora_tui.screens.jobs's.
"""

from argparse import Namespace
from pathlib import Path

from presets.errors import UserError
from presets.job.fields import toml_text
from presets.job.schema import Job
from presets.job.toml_file import get_value, save_job, with_value
from presets.text import to_type
from wanlora_tui.commands import job
from wanlora_tui.commands.common import print_json, say
from wanlora_tui.draft.from_job import OWN_LISTS, job_at, next_name
from wanlora_tui.output.far_words import shown_path


def new(args: Namespace) -> int:
    """Write a job file, from clips or as a copy; prints its path, or all about it as JSON."""
    if args.from_job is None and (args.kind is None or args.clips is None):
        say("wanlora new: --kind and --clips are needed, or --from JOB to copy one. See: wanlora new --help")
        return 2
    if args.from_job is None:
        return job.new(args)
    target: Path = args.out.resolve()
    if target.exists():
        raise UserError("exists already", where=str(args.out), fix="Choose another file with --out, or delete this one")
    source, copy = job_at(args.from_job), job.with_settings(copied(args, target), args.set)
    save_job(copy, target)
    differ = changes(source, copy)
    for field in differ:
        say(f"{field} = {toml_text(get_value(copy, field))}, was {toml_text(get_value(source, field))}")
    if args.json:
        told = [{"field": f, "old": get_value(source, f), "new": get_value(copy, f)} for f in differ]
        print_json(job.made_file(target, copy, changes=told), indented=True)
    else:
        print(args.out)
    where = shown_path(str(args.out), short=False)
    then = f"{to_type('check', where)} && {to_type('submit', where)}"
    say(f"All else is as in {args.from_job}. Look through it, then: {then}")
    return 0


def copied(args: Namespace, target: Path) -> Job:
    """The job of a job file or a run folder with a name of its own. Raises UserError."""
    if args.clips or args.start or args.start_low or args.merge or args.hold_out or args.preview is not None:
        raise UserError(
            "a copy has the clips, LoRAs and previews of its job",
            where="--from",
            fix="Leave --clips, --start, --merge, --preview and --hold-out out, and change fields with --set",
        )
    given = job_at(args.from_job)
    taken = {path.stem for path in target.parent.glob("*.toml")} | {
        path.name for path in (target.parent / "runs").glob("*")
    }
    if args.kind:
        given = with_value(given, "job.kind", args.kind)
    return with_value(given, "job.name", args.name or next_name(given.job.name, taken))


def changes(before: Job, after: Job) -> list[str]:
    """Field paths whose values differ, those in lists of their own left out."""
    from presets.job.fields import FIELDS

    paths = [
        path
        for field in FIELDS.values()
        if not field.path.startswith(OWN_LISTS)
        for path in (
            [f"datasets[{i}].{field.name}" for i in range(len(after.datasets))]
            if field.path.startswith("datasets.")
            else [field.path]
        )
    ]
    return [path for path in paths if get_value(before, path) != get_value(after, path)]
