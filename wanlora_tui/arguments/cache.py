"""Commands on what is kept for the next start."""

from functools import partial

from wanlora_tui.arguments.common import Commands, add_command, host


def cache(commands: Commands) -> None:
    """What is kept for the next start."""
    group = commands.add_parser(
        "cache",
        parents=[host()],
        help="list or empty what is kept for the next start",
        description=(
            "Kept so that the next start is fast: packed weights of base models, latents of images, text embeddings."
        ),
    )
    group.set_defaults(handler="cache:show", json=False, kind=None, far="there", parser=group)
    parts = group.add_subparsers(title="commands", metavar="list|clear|path")
    command = partial(add_command, parts)
    kinds = ("weights", "latents", "texts")
    c = command(
        "list",
        "cache:show",
        "list what the caches hold, last used first (`wanlora cache` alone does the same)",
        daemon=False,
    )
    c.add_argument(
        "kind", nargs="?", choices=kinds, help="show every entry of this cache (default: all caches, summed up)"
    )
    c.add_argument("--json", action="store_true", help="a list of objects")
    c = command("clear", "cache:clear", "delete the caches, or one of them", daemon=False)
    c.add_argument("kind", nargs="?", choices=kinds, help="only this cache")
    c = command("path", "cache:path", "print the folder of the caches, or of one of them", daemon=False)
    c.add_argument("kind", nargs="?", choices=kinds, help="only this cache")
