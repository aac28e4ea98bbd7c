"""The picture of the four floors as an SVG: each floor a band, its rooms as boxes, the topmost first. Where things
stand is tests.house.layout's.

Bands have their own background and every text stands on one, so the picture can be read on a light page and on a dark
one. Only fonts that every system has are named.
"""

import re
import textwrap
from html import escape

from tests.helpers.floors import below, charter, floors_below
from tests.house.layout import Layout, box_width, lay_out

WIDTH, MARGIN, BETWEEN = 1060, 8, 30  # px: of the picture, around it, between two rows of bands
ROW, BOX = 50, 26  # px: from one row of rooms to the next, and the height of a box
LINE, LETTER = 17, 6.4  # px: of the text at the head of a band
# the bands from the top: floor, share of the width, colours of its background and its lines
BANDS = (
    (("wanlora_tui", 1.0, "#e7f0fd", "#3b6fb6"),),
    (("daemon", 0.57, "#e6f4ea", "#3d8b56"), ("engine", 0.43, "#fdf1de", "#b57614")),
    (("presets", 1.0, "#f3eafb", "#7e57a8"),),
)
STYLE = """\
text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; }
.room { text-anchor: middle; }
.floor { font-weight: bold; font-size: 15px; }
.about { font: 12.5px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #424a53; }
.arrow { fill: none; stroke: #57606a; stroke-width: 1.2; marker-end: url(#head); }
.between { fill: none; stroke: #8b949e; stroke-width: 3; marker-end: url(#thick); }"""
HEADS = """\
<defs>
<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0L8 4L0 8z" fill="#57606a"/></marker>
<marker id="thick" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="4" markerHeight="4" orient="auto">\
<path d="M0 0L8 4L0 8z" fill="#8b949e"/></marker>
</defs>"""


def picture() -> str:
    """The whole SVG file."""
    body: list[str] = []
    y = float(MARGIN)
    edges: dict[str, tuple[float, float, float]] = {}  # floor -> centre, top, bottom of its band
    for bands in BANDS:
        left, height = float(MARGIN), 0.0
        room = WIDTH - 2 * MARGIN - BETWEEN / 2 * (len(bands) - 1)
        drawn = []
        for floor, share, *colours in bands:
            width = round(room * share, 1)
            about = _about(floor, width)
            layout = lay_out(below(floor), width)
            drawn.append((floor, left, width, colours, about, layout))
            height = max(height, 40 + LINE * len(about) + ROW * layout.rows - (ROW - BOX) + 14)
            left += width + BETWEEN / 2
        for floor, left, width, colours, about, layout in drawn:
            body += _band(floor, left, y, width, height, about, layout, *colours)
            edges[floor] = (left + width / 2, y, y + height)
        y += height + BETWEEN
    for floor, (middle, _, bottom) in edges.items():
        for other in floors_below(floor):
            if edges[other][1] - bottom == BETWEEN:  # the band just below: the others follow from these
                centre = edges[other][0] if floor == "wanlora_tui" else middle  # of the narrower band
                body.append(f'<path class="between" d="M{centre:.1f} {bottom:.1f}V{edges[other][1] - 2:.1f}"/>')
    total = round(y - BETWEEN + MARGIN)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}"'
        f' role="img" aria-label="The four floors, their rooms, and which room imports which">\n'
        f"<!-- Made by `make docs` (tests/house). -->\n<style>\n{STYLE}\n</style>\n{HEADS}"
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


def _about(floor: str, width: float) -> list[str]:
    """What stands at the head of a band."""
    others = ", ".join(floors_below(floor)) or "nothing of ours"
    sentence = re.split(r"[.:] ", charter(floor, ""))[0].replace("`", "").rstrip(".")
    return textwrap.wrap(f"{sentence}. Imports {others}.", int((width - 28) / LETTER))


def _band(
    floor: str,
    left: float,
    top: float,
    width: float,
    height: float,
    about: list[str],
    layout: Layout,
    background: str,
    line: str,
) -> list[str]:
    out = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="{background}"'
        f' stroke="{line}"/>',
        f'<text class="floor" x="{left + 14:.1f}" y="{top + 24:.1f}">{floor}/</text>',
    ]
    for i, text in enumerate(about):
        out.append(f'<text class="about" x="{left + 14:.1f}" y="{top + 43 + LINE * i:.1f}">{escape(text)}</text>')
    first = top + 40 + LINE * len(about)  # of the first row of boxes
    for points in layout.arrows.values():
        out.append(f'<path class="arrow" d="{_curve([(left + x, first + ROW * row) for x, row in points])}"/>')
    for room, (x, row) in layout.boxes.items():
        wide, y = box_width(room), first + ROW * row
        out.append(
            f'<g><title>{escape(charter(floor, room))}</title><rect x="{left + x - wide / 2:.1f}" y="{y:.1f}"'
            f' width="{wide:.1f}" height="{BOX}" rx="4" fill="#ffffff" stroke="{line}"/><text class="room"'
            f' x="{left + x:.1f}" y="{y + 17.5:.1f}">{room}</text></g>'
        )
    return out


def _curve(points: list[tuple[float, float]]) -> str:
    """From the bottom of the first box to the top of the last: bent between rows, straight beside the boxes of a
    row."""
    (x, y), *rest = points
    out = f"M{x:.1f} {y + BOX:.1f}"
    for i, (to, row) in enumerate(rest):
        bend = (ROW - BOX) / 2
        out += f"C{x:.1f} {row - bend:.1f} {to:.1f} {row - bend:.1f} {to:.1f} {row:.1f}"
        out += f"V{row + BOX:.1f}" if i < len(rest) - 1 else ""
        x = to
    return out
