"""set, save, sample: commands to a job that trains.

What they do is engine.training.commands's; stopping is wanlora_tui.commands.queue's.
"""

from argparse import Namespace

from daemon.wire.client import Client
from presets.errors import UserError
from presets.job.diff import live_value
from wanlora_tui.commands.common import ask, say


def set_field(args: Namespace) -> int:
    """Every setting is looked at before the first one is sent."""
    pairs = []
    for setting in args.settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} has no value", fix="Write it as training.lr=5e-5")
        live_value(field.strip(), value)
        pairs.append((field.strip(), value.strip()))

    async def send(daemon: Client) -> None:
        for field, value in pairs:
            record = await daemon.set(args.job, field, value)
            say(f"{record.name}: {field} = {value or 'left out'} from its next step on.")
            if field == "training.steps" and int(value) <= record.step:
                say(f"{record.name} has made {record.step} steps already, so it saves and is done.")

    ask(args.dir, send)
    return 0


def save(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.save_now(args.job))
    say(f"{record.name}: saves a checkpoint after the step it is at, and continues.")
    return 0


def sample(args: Namespace) -> int:
    record = ask(args.dir, lambda daemon: daemon.sample_now(args.job))
    say(f"{record.name}: makes its previews after the step it is at, and continues.")
    return 0
