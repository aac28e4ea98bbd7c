"""What submit takes for one of its two queues, the daemon's and Slurm's: the other would pass it over."""

from argparse import Namespace

from presets.errors import UserError

# with the values that mean that it was not given
OF_THE_DAEMON: dict[str, object] = {
    **dict.fromkeys(("priority", "on_done", "on_failed", "on_stopped", "folder")),
    **dict.fromkeys(("hold", "no_restart", "anyway", "send", "replace"), False),
    "after": [],
}
OF_SLURM: dict[str, object] = {"partition": None, "nodes": 1, "time": None, "gpu": None, "follow": False}


def require_heeded(args: Namespace) -> None:
    """Raises UserError for options that the queue which is asked would pass over."""
    other = OF_THE_DAEMON if args.slurm else OF_SLURM
    lost = [f"--{name.replace('_', '-')}" for name, unset in other.items() if getattr(args, name) != unset]
    if lost:
        raise UserError(
            f"{' and '.join(lost)} {'are' if len(lost) > 1 else 'is'} of"
            f" {'the daemon' if args.slurm else 'Slurm'}'s queue alone",
            fix=f"Leave {'them' if len(lost) > 1 else 'it'} out{' or add --slurm' if not args.slurm else ''}",
        )
