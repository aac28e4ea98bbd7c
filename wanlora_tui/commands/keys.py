"""daemon keys, and --connect: daemons that are reached through the network. The keys themselves are
daemon.wire.keys's."""

from argparse import Namespace
from collections.abc import Callable

from daemon.wire.keys import (
    CLIENT,
    SERVER,
    allow_client,
    allowed_clients,
    make_keys,
    read_pair,
    revoke_client,
    trust_daemon,
    trusted_daemons,
)
from daemon.wire.paths import daemon_paths
from presets.errors import UserError
from wanlora_tui.commands.common import print_table, say
from wanlora_tui.output.formatting import home_path

# that only talk to a daemon; others look at files of this machine, or start and end processes on it
_REMOTE = ("jobs.queue:", "jobs.watch:", "resume:resume", "tui:attach", "daemon:status")


def connected(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """A command that is run with --connect."""

    def there(args: Namespace) -> int:
        from daemon.wire.network import reached

        if not args.handler.startswith(_REMOTE) or args.handler == "jobs.queue:submit":
            raise UserError(
                "this command is about the machine that it runs on",
                where=f"--connect {args.connect}",
                fix="Run it there, as through ssh. With --connect, jobs that are there can be followed and changed",
            )
        with reached(args.connect, args.dir) as args.dir:
            return run(args)

    return there


def show(args: Namespace) -> int:
    """Public keys alone: none of this is secret."""
    paths = daemon_paths(args.dir)
    rows = [("key of", "public key")]
    for name, whose in ((SERVER, "the daemon here"), (CLIENT, "you as a client")):
        if (paths.keys / name).exists():
            rows.append((whose, read_pair(paths.keys / name).public))
    rows += [(f"allowed client {name}", key) for key, name in allowed_clients(paths).items()]
    rows += [(f"pinned daemon {address}", key) for address, key in trusted_daemons(paths).items()]
    if len(rows) == 1:
        say(f"There are no keys in {home_path(str(paths.keys))}. Make some with: wanlora daemon keys make")
        return 0
    print_table(rows)
    return 0


def make(args: Namespace) -> int:
    paths = daemon_paths(args.dir)
    made = make_keys(paths)
    say(
        f"Made {' and '.join(path.name for path in made)} in {home_path(str(paths.keys))}."
        if made
        else f"The keys are there already, in {home_path(str(paths.keys))}."
    )
    return 0


def allow(args: Namespace) -> int:
    name = allow_client(daemon_paths(args.dir), args.key, args.name)
    say(f"{name} may connect. A running daemon knows it within seconds.")
    return 0


def revoke(args: Namespace) -> int:
    name = revoke_client(daemon_paths(args.dir), args.client)
    say(f"{name} may connect no more. A running daemon cuts it off within seconds.")
    return 0


def trust(args: Namespace) -> int:
    trust_daemon(daemon_paths(args.dir), args.address, args.key)
    say(f"Connect with: wanlora jobs --connect {args.address}")
    return 0
