"""What commands from outside do between two optimizer steps: new values, a save, previews.

How they arrive, and how a stop does, is engine.runfolder.control's.
"""

from engine.runfolder.control import refusal
from engine.system import fault_injection
from engine.training.context import Run
from engine.training.previews import make_previews
from engine.training.saving import save_all
from presets.errors import UserError
from presets.job.diff import live_value
from presets.job.toml_file import get_value, with_value
from presets.runs.control import TrainerCommand
from presets.runs.events import COMMAND_ID


def apply_commands(run: Run, step: int) -> None:
    """`step` optimizer steps are done and the state is whole. First what was set here when this step was trained
    before, then new commands."""
    for setting in [s for s in run.ahead if s.step <= step]:
        run.ahead.remove(setting)
        run.job = with_value(run.job, setting.field, setting.new)
        run.log.emit("changed", field=setting.field, old=setting.old, new=setting.new, step=step)
    for file, command in run.control.waiting():
        try:
            if (
                command.id not in run.log.history.command_ids
            ):  # else a kill came between the event and the end of the file
                _apply(run, step, command)
        except UserError as e:
            run.log.finding(refusal(_words(command), e), **_answered(command))
        # on a full disk the answer waits in memory, and would be lost with the process: then the file must not be
        written = run.log.flush() or not command.id
        if written and not _cut_short(run, command):  # the next attempt makes those previews
            fault_injection.at("control.after-event", step)
            run.control.done(file)


def _apply(run: Run, step: int, command: TrainerCommand) -> None:
    match command.command:
        case "set":
            _set(run, step, command)
        case "save":
            if step == 0:
                raise UserError("no step was done yet, so there is nothing to save", fix="Wait for the first step")
            save_all(run, step)
            _report(run, command, f"saved after step {step}, as commanded")
        case "sample":
            if not run.job.sample.prompts:
                raise UserError(
                    "the job has no preview prompts",
                    where="sample.prompts",
                    fix="Stop the job, add a prompt with its control image to the job file, and resume",
                )
            make_previews(run, step)
            if not _cut_short(run, command):
                _report(run, command, f"previews after step {step} were made, as commanded")


def _set(run: Run, step: int, command: TrainerCommand) -> None:
    """From the next step on; it takes the place of what an earlier attempt set later. Rates follow the schedule of the
    job as it is now: with other steps a linear or cosine one jumps to where a run of that length would be."""
    field = command.field
    new, old = live_value(field, command.value), get_value(run.job, field)
    changed = with_value(run.job, field, new)
    run.ahead[:] = [s for s in run.ahead if s.field != field]
    if old == new:
        _report(run, command, f"{field} is {new} already")
        return
    run.job = changed
    run.log.emit("changed", field=field, old=old, new=new, step=step, **_answered(command))


def _report(run: Run, command: TrainerCommand, text: str) -> None:
    run.log.emit("log", level="info", text=text, **_answered(command))


def _answered(command: TrainerCommand) -> dict[str, str]:
    """What an event says that answers a command: whoever finds its file after that leaves it alone."""
    return {COMMAND_ID: command.id} if command.id else {}


def _cut_short(run: Run, command: TrainerCommand) -> bool:
    """Whether a stop came while the previews were made that the command is about."""
    return command.command == "sample" and bool(run.control.why)


def _words(command: TrainerCommand) -> str:
    return f"set {command.field} = {command.value}" if command.command == "set" else command.command
