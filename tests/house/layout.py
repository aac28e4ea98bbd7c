"""Where the rooms of one floor stand in the picture, and which way their arrows take. Knows no colour and no SVG.

A room stands in the row of its depth. An arrow that spans several rows has a place of its own in each row that it
passes, so it never crosses a box. The order within the rows is the one with the fewest crossings that was found; then
everything is drawn towards what it is connected with. The same rooms and arrows give the same places.
"""

import random
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

from tests.helpers.floors import depths, reduced

LETTER, PADDING, GAP = 7.9, 18.0, 30.0  # px: of a monospaced letter of 13 px; a box around its text; between boxes
PASSING = 6.0  # width of an arrow's place in a row
PORT = 16.0  # between two arrows at one box
TRIES = 60  # orders that the search begins with

Node = tuple[str, ...]  # (room,), or (from, to, row) where an arrow passes a row
Point = tuple[float, int]  # x, row


@dataclass(frozen=True)
class Layout:
    """x are centres, from the left edge of the floor. An arrow leads through one point in each row, from box to box."""

    boxes: dict[str, Point]
    arrows: dict[tuple[str, str], list[Point]]
    rows: int


def box_width(room: str) -> float:
    return len(room) * LETTER + PADDING


def lay_out(below: dict[str, set[str]], width: float) -> Layout:
    """`below`: room -> rooms that it imports; only what `reduced` leaves is drawn."""
    depth, drawn = depths(below), reduced(below)
    ways = {(a, b): _way(a, b, depth) for a in sorted(drawn) for b in sorted(drawn[a])}
    steps = [step for way in ways.values() for step in pairwise(way)]
    rows: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in dict.fromkeys([(room,) for room in sorted(depth)] + [n for way in ways.values() for n in way]):
        rows[_row(node, depth)].append(node)
    rows = _untangled(rows, steps)
    x = _settled(rows, steps, width)
    boxes = {node[0]: (x[node], row) for row, nodes in enumerate(rows) for node in nodes if len(node) == 1}
    return Layout(boxes, {pair: _with_ports(way, ways, x, depth) for pair, way in ways.items()}, len(rows))


def _way(a: str, b: str, depth: dict[str, int]) -> list[Node]:
    return [(a,), *((a, b, str(row)) for row in range(depth[a] + 1, depth[b])), (b,)]


def _row(node: Node, depth: dict[str, int]) -> int:
    return depth[node[0]] if len(node) == 1 else int(node[2])


def _with_ports(
    way: list[Node], ways: dict[tuple[str, str], list[Node]], x: dict[Node, float], depth: dict[str, int]
) -> list[Point]:
    """The arrow's points; where several leave or reach one box, each has its own place at it."""

    def port(end: int, near: int) -> Point:
        others = sorted((w for w in ways.values() if w[end] == way[end]), key=lambda w: x[w[near]])
        spread = min(PORT, (box_width(way[end][0]) - PADDING) / len(others))
        return x[way[end]] + (others.index(way) - (len(others) - 1) / 2) * spread, _row(way[end], depth)

    return [port(0, 1), *((x[node], _row(node, depth)) for node in way[1:-1]), port(-1, -2)]


def _crossings(rows: list[list[Node]], steps: list[tuple[Node, Node]]) -> int:
    at = {node: (row, place) for row, nodes in enumerate(rows) for place, node in enumerate(nodes)}
    ends = [(at[a][0], at[a][1], at[b][1]) for a, b in steps]
    return sum(r == s and (a - c) * (b - d) < 0 for (r, a, b), (s, c, d) in combinations(ends, 2))


def _untangled(rows: list[list[Node]], steps: list[tuple[Node, Node]]) -> list[list[Node]]:
    """The rows in the order with the fewest crossings, of those that the barycenter method leads to."""
    chance, best = random.Random(0), (_crossings(rows, steps), rows)
    near: dict[Node, list[Node]] = {}
    for a, b in steps:
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    for _ in range(TRIES):
        tried = [chance.sample(nodes, len(nodes)) for nodes in rows]
        for row in [*range(len(rows)), *reversed(range(len(rows))), *range(len(rows))]:
            place = {node: i / max(1, len(nodes) - 1) for nodes in tried for i, node in enumerate(nodes)}
            tried[row].sort(key=lambda node: fmean(place[n] for n in near.get(node, [node])))
        best = min(best, (_crossings(tried, steps), tried), key=lambda pair: pair[0])
    return best[1]


def _settled(rows: list[list[Node]], steps: list[tuple[Node, Node]], width: float) -> dict[Node, float]:
    """The x of every node: rows start evenly spaced, then each is drawn to the mean of its neighbours.
    What comes of it is put into the middle."""
    wide = {node: box_width(node[0]) if len(node) == 1 else PASSING for nodes in rows for node in nodes}
    x = {node: width * (i + 0.5) / len(nodes) for nodes in rows for i, node in enumerate(nodes)}
    for _ in range(40):
        for nodes in rows:
            wanted = [
                fmean([x[b if a == node else a] for a, b in steps if node in (a, b)] or [x[node]]) for node in nodes
            ]
            for node, new in zip(nodes, _apart(wanted, [wide[n] for n in nodes], width), strict=True):
                x[node] = new
    left, right = min(x[n] - wide[n] / 2 for n in x), max(x[n] + wide[n] / 2 for n in x)
    return {node: at + (width - left - right) / 2 for node, at in x.items()}


def _apart(wanted: list[float], wide: list[float], width: float) -> list[float]:
    """Centres as near to `wanted` as boxes of these widths can be, in this order, inside the floor: the least squares
    under the distances (an isotonic regression, by pooling)."""
    shift = [0.0]
    for a, b in pairwise(wide):
        shift.append(shift[-1] + (a + b) / 2 + GAP)
    pools: list[list[float]] = []
    for value in (w - s for w, s in zip(wanted, shift, strict=True)):
        pools.append([value])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [fmean(pool) for pool in pools for _ in pool]
    least, most = wide[0] / 2 + GAP, width - wide[-1] / 2 - GAP - shift[-1]
    return [min(max(value, least), most) + s for value, s in zip(level, shift, strict=True)]
