"""The chart of `wanlora timesteps`: how each expert's samples spread over the timesteps 0 to 1000, as text and as PNG.

Each expert has a panel with a scale of its own, in percent of its samples per 10 timesteps. A bias piles samples up at
one end of a range without bound, so the scale ends at a few times the even density, and what goes beyond is marked.
"""

import math
import textwrap
from pathlib import Path

from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, ExpertTimesteps
from wanlora_tui.output.formatting import count, expert_text

COLUMNS, ROWS, MARGIN = 70, 7, 6  # of a panel; with the margin below 80 columns
BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", "    .####"  # a cell by its eighths
MARKS = {True: ("│", "─", "┴", "▲"), False: ("|", "-", "+", "^")}  # boundary and axes, and what is off the scale
CUT = "off the scale"
PER = 10.0  # timesteps
ROUND = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10)  # ends of a scale, times a power of ten
HIGHEST = 3.5  # times the even density: the end of the scale
TICKS = (0, 250, 500, 750, 1000)
WIDTH, HEIGHT, LEFT, TOP, PANEL, GAP = 1200, 760, 90, 96, 230, 96  # of the PNG, pixels
INK, FAINT, COLOURS = "#1b1f24", "#d5d9de", {"high_noise": "#c2571a", "low_noise": "#2463a8"}


def unicode_blocks(encoding: str | None) -> bool:
    """Whether an output of this encoding can show block characters."""
    try:
        (BLOCKS + "".join(MARKS[True])).encode(encoding or "ascii")
        return True
    except (UnicodeEncodeError, LookupError):
        return False


def scale_of(expert: ExpertTimesteps) -> float:
    """The top of an expert's scale, in percent of its samples per 10 timesteps: a round number."""
    even = 100 * PER / (expert.high - expert.low)
    wanted = min(1.1 * max(percents(expert)), HIGHEST * even)
    power = 10 ** math.floor(math.log10(wanted))
    return next(r * power for r in ROUND if r * power >= wanted)


def percents(expert: ExpertTimesteps) -> list[float]:
    """Each bin in percent of the expert's samples per 10 timesteps."""
    width = NUM_TRAIN_TIMESTEPS / len(expert.masses)
    return [100 * mass * PER / width for mass in expert.masses]


def headline(expert: ExpertTimesteps, steps: int) -> str:
    name = expert_text(expert.expert)
    if not expert.trained:
        return f"{name}: not trained"
    return (
        f"{name}: {expert.steps} of {count(steps, 'step')} ({100 * expert.steps / steps:.0f}%), timesteps"
        f" {expert.low:g} to {expert.high:g}, median {expert.median:.0f}"
    )


def is_cut(expert: ExpertTimesteps) -> bool:
    """Whether the density leaves the scale somewhere."""
    return max(percents(expert)) > scale_of(expert)


def text_chart(title: str, experts: list[ExpertTimesteps], steps: int, boundary: float, *, blocks: bool) -> list[str]:
    """The lines of both panels, one axis below each, at most 80 columns wide but for a long title, which is wrapped."""
    out = [*textwrap.wrap(title, 79), ""]
    for expert in experts:
        out.append(headline(expert, steps))
        if expert.trained:
            out += _panel(expert, boundary, blocks=blocks)
        out.append("")
    return [*out, "Percent of each expert's samples per 10 timesteps. 1000 is pure noise."]


def _panel(expert: ExpertTimesteps, boundary: float, *, blocks: bool) -> list[str]:
    wall, floor, foot, beyond = MARKS[blocks]
    cells, top, values = BLOCKS if blocks else ASCII, scale_of(expert), percents(expert)
    edge = min(COLUMNS - 1, int(boundary * COLUMNS))
    # what is there shows, however little
    eighths = [max(1 if v > 0 else 0, round(min(v / top, 1.0) * ROWS * 8)) for v in values]
    out = []
    for row in reversed(range(ROWS)):
        line = [cells[min(8, max(0, n - 8 * row))] for n in eighths]
        if row == ROWS - 1:
            line = [beyond if v > top else c for c, v in zip(line, values, strict=True)]
        if line[edge] == " ":
            line[edge] = wall
        label = f"{top:.3g}%" if row == ROWS - 1 else f"{top / 2:.3g}%" if row == ROWS // 2 else ""
        out.append(f"{label:>{MARGIN}} {wall}{''.join(line)}".rstrip())
    out.append(" " * (MARGIN + 1) + foot + "".join(foot if i == edge else floor for i in range(COLUMNS)))
    ticks = [" "] * (MARGIN + 6 + COLUMNS)
    for tick in TICKS:
        text = str(tick)
        start = (
            MARGIN
            + 2
            + round(tick / 1000 * COLUMNS)
            - (0 if tick == 0 else len(text) // 2 if tick < 1000 else len(text))
        )
        ticks[start : start + len(text)] = text
    out.append("".join(ticks).rstrip())
    mark, place, note = (
        f"boundary {boundary * NUM_TRAIN_TIMESTEPS:g}",
        MARGIN + 2 + edge,
        f"{beyond} {CUT}" if is_cut(expert) else "",
    )
    # ends or begins below the boundary, whichever has the room
    start = place - len(mark) + 1 if edge > COLUMNS // 2 else place
    out.append(f"{note:<{start}}{mark}" if edge > COLUMNS // 2 else f"{' ' * start}{mark}    {note}".rstrip())
    return out


def draw_png(path: Path, title: str, experts: list[ExpertTimesteps], steps: int, boundary: float) -> None:
    """The same chart as a picture. Raises OSError."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    large, normal, small = (ImageFont.load_default(size) for size in (21, 18, 15))
    right = WIDTH - 40

    def x(timestep: float) -> float:
        return LEFT + timestep / NUM_TRAIN_TIMESTEPS * (right - LEFT)

    draw.text((LEFT, 22), title, fill=INK, font=large if draw.textlength(title, font=large) <= right - LEFT else small)
    for i, expert in enumerate(experts):
        above = TOP + i * (PANEL + GAP)
        ground, colour = above + PANEL, COLOURS[expert.expert]
        draw.text((LEFT, above - 30), headline(expert, steps), fill=colour, font=normal)
        if expert.trained:
            values, top = percents(expert), scale_of(expert)
            for part in (0.0, 0.25, 0.5, 0.75, 1.0):
                y = ground - part * PANEL
                draw.line((LEFT, y, right, y), fill=FAINT)
                draw.text((LEFT - 8, y), f"{part * top:.3g}%", fill=INK, font=small, anchor="rm")
            width = NUM_TRAIN_TIMESTEPS / len(values)
            tips = [
                (x((j + side) * width), ground - min(v / top, 1.0) * PANEL)
                for j, v in enumerate(values)
                for side in (0, 1)
            ]
            draw.polygon([(LEFT, ground), *tips, (right, ground)], fill=_light(colour))
            draw.line(tips, fill=colour, width=2)
            draw.line((x(expert.median), above, x(expert.median), ground), fill=colour, width=2)
            aside, anchor = (6, "la") if expert.median < 800 else (-6, "ra")
            draw.text((x(expert.median) + aside, above + 4), "median", fill=colour, font=small, anchor=anchor)
            if is_cut(expert):
                draw.text((right, above - 6), CUT, fill=colour, font=small, anchor="rb")
        for y in range(above, ground, 10):
            draw.line((x(boundary * NUM_TRAIN_TIMESTEPS), y, x(boundary * NUM_TRAIN_TIMESTEPS), y + 5), fill=INK)
        draw.line((LEFT, ground, right, ground), fill=INK, width=2)
        for tick in range(0, 1001, 100):
            draw.line((x(tick), ground, x(tick), ground + 6), fill=INK)
            draw.text((x(tick), ground + 9), str(tick), fill=INK, font=small, anchor="ma")
    foot = TOP + len(experts) * (PANEL + GAP) - GAP + 36
    draw.text(
        ((LEFT + right) / 2, foot),
        f"timestep (1000 is pure noise; dashed: the boundary at {boundary * NUM_TRAIN_TIMESTEPS:g})",
        fill=INK,
        font=small,
        anchor="ma",
    )
    draw.text(
        (LEFT, foot + 24),
        "Percent of each expert's samples per 10 timesteps; each expert has its own scale.",
        fill=INK,
        font=small,
    )
    picture.save(path, "PNG")


def _light(colour: str) -> tuple[int, int, int]:
    """A colour as a pale filling."""
    from PIL import ImageColor

    red, green, blue = ImageColor.getrgb(colour)[:3]
    return (red + 3 * 255) // 4, (green + 3 * 255) // 4, (blue + 3 * 255) // 4
