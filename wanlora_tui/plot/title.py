"""The line above a plot: what is drawn and how, and the keys of a plot that has the focus."""

from textual.content import Content

from presets.text import escaped
from wanlora_tui.output.formatting import expert_text, shorten
from wanlora_tui.plot.colours import variable_of
from wanlora_tui.plot.curves import SIGNS
from wanlora_tui.plot.figure import SMOOTHING, Options
from wanlora_tui.plot.window import Window

EMPTY = "loss, from the first step on"
KEYS = (
    "+ - zoom",
    "0 all",
    "← → read",
    "m mark",
    "g log",
    "2 panels",
    "A add run",
    "[ ] smooth",
    "i points",
    "< > pan",
)
NAME = 20  # characters of a run's name
FRAME = 8  # columns that the border and the gap before the keys take


def title(experts: list[str], others: list[tuple[str, bool]], options: Options, window: Window | None) -> Content:
    """`others`: the names of the runs to compare with, and whether anything is known of each yet."""
    parts: list[str | tuple[str, str]] = ["loss"]
    for side, expert in enumerate(experts):
        parts += ["  ", (SIGNS[0][side % 2], f"${variable_of(side % 2)}"), f" {escaped(expert_text(expert))}"]
    for run, (name, known) in enumerate(others, 1):
        signs = [(SIGNS[run][side], f"${variable_of(2 * run + side)}") for side in (0, 1)]
        parts += ["  ", *signs, f" {escaped(shorten(name, NAME))}{'' if known else ' …'}"]
    said = [text for text, on in (("log", options.log), ("all points", options.everything)) if on]
    if options.smoothing != Options().smoothing:
        said.append(f"mean of {100 * SMOOTHING[options.smoothing]:g}%" if options.smoothing else "not smoothed")
    if window:
        said.append(f"steps {round(window.low)} to {round(window.high)}")
    return Content.assemble(*parts, f"  {', '.join(said)}" if said else "")


def with_keys(said: Content, columns: int) -> Content:
    """With as many keys behind it as there is room for."""
    keys, room = "", columns - said.cell_length - FRAME
    for key in KEYS:
        longer = f"{keys}  {key}" if keys else key
        if len(longer) > room:
            break
        keys = longer
    return Content.assemble(said, " ── ", (keys, "$text-muted")) if keys else said
