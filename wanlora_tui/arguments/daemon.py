"""Commands on the daemon itself."""

from argparse import RawDescriptionHelpFormatter
from functools import partial

from wanlora_tui.arguments.common import Commands, add_command


def daemon(commands: Commands) -> None:
    """The daemon itself."""
    group = commands.add_parser(
        "daemon",
        help="start, stop, renew, install or ask after the daemon",
        description="The daemon queues, starts and watches trainers. Stopping it does not stop them.",
    )
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = partial(add_command, parts, far="there")
    command("start", "daemon:start", "start the daemon, if none runs")
    command("stop", "daemon:stop", "end the daemon; trainers keep running and are found again by the next one")
    command(
        "restart", "daemon:restart", "put this installation's daemon in place of the one that runs; after an upgrade"
    )

    c = command("status", "daemon_status:status", "say whether the daemon runs, where, and how it does")
    c.epilog = "Exit code: 0 when it answers and nothing is wrong with it, else 1."
    c.add_argument("--json", action="store_true", help="one object")

    c = command("notify-test", "daemon:notify_test", "send a test message to those whom settings.toml names")
    c.epilog = "Says for each what came back. Exit code: 0 when all were told, else 1."
    c.add_argument("name", nargs="?", metavar="NAME", help="only this one (default: all)")

    c = command("install", "install:install", "have the daemon started with the machine, and again when it dies")
    c.epilog = (
        "By a unit of your own systemd. Where there is none, by an @reboot line of your crontab; where there is no cron"
        " either, it prints the line for whatever starts this machine. What runs already is taken over, trainers"
        " included. To be repeated after the installation has moved."
    )
    c.add_argument("--print", action="store_true", dest="show", help="show the unit, and change nothing")

    c = command("uninstall", "install:uninstall", "take back what install has done, and end the daemon")
    c.epilog = "Trainers keep running. The job table and all runs stay, unless --purge is given; runs stay in any case."
    c.add_argument("--purge", action="store_true", help="remove the job table and the log too; asks before")
    c.add_argument("--yes", action="store_true", help="do not ask")

    keys = parts.add_parser(
        "keys",
        help="keys for clients that come through the network",
        formatter_class=RawDescriptionHelpFormatter,
        description=_KEYS,
    )
    ways = keys.add_subparsers(title="commands", metavar="show|make|allow|revoke|trust", required=True)
    command = partial(add_command, ways, far="there")
    command("show", "keys:show", "print this machine's public keys, the allowed clients and the pinned daemons")
    command("make", "keys:make", "make the keys that are missing, of the daemon here and of you as a client")
    c = command("allow", "keys:allow", "let a client come in through the network")
    c.add_argument("key", metavar="KEY", help="its public key, as `wanlora daemon keys show` prints it there")
    c.add_argument("name", nargs="?", default="", metavar="NAME", help="what to call it")
    c = command("revoke", "keys:revoke", "let a client in no more; it is cut off within seconds")
    c.add_argument("client", metavar="NAME|KEY", help="its name or its public key")
    c = command("trust", "keys:trust", "pin the public key of a daemon on another machine")
    c.add_argument("address", metavar="ADDRESS", help="tcp://host:port")
    c.add_argument("key", metavar="KEY", help="its public key, as `wanlora daemon keys show` prints it there")


_KEYS = """\
Through ssh (--host) nothing of this is needed. A daemon listens to the network
itself when its settings say so and its clients' keys are known to it, and the
client knows the daemon's:
  there  wanlora daemon keys make           and [tcp] listen = "0.0.0.0:7777" in settings.toml
  here   wanlora daemon keys make
  there  wanlora daemon keys allow KEY      the client key that `show` prints here
  here   wanlora daemon keys trust tcp://box:7777 KEY    the daemon key that `show` prints there
  here   wanlora jobs --connect tcp://box:7777
"""
