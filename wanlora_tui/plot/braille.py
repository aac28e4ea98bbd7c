"""A canvas of dots: braille has 2 x 4 of them in each cell of a terminal. What is drawn on it is not known here."""

from collections.abc import Iterable, Iterator, Sequence

EMPTY = 0x2800  # the braille sign without dots
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column within a cell
LAYER = 100  # inks of one hundred are of one layer
SOLID = (True,)


class Canvas:
    """Dots have places from (0, 0) at the top left to (width - 1, height - 1); what lies outside is not drawn.

    An ink is a number that its user gives a colour to. A cell has one ink: that of the higher layer, whose dots then
    stand alone, so that a line stays crisp in a cloud of points.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.width, self.height = 2 * columns, 4 * rows
        self._bits = [0] * (columns * rows)
        self._inks = [0] * (columns * rows)

    def dots(self, places: Iterable[tuple[int, int]], ink: int) -> None:
        columns, width, height, bits, inks = self.columns, self.width, self.height, self._bits, self._inks
        above = ink // LAYER
        for x, y in places:
            if not (0 <= x < width and 0 <= y < height):
                continue
            cell = (y >> 2) * columns + (x >> 1)
            held = inks[cell]
            if ink != held:
                below = held // LAYER
                if above < below:
                    continue
                if above > below:
                    bits[cell] = 0
                inks[cell] = ink
            bits[cell] |= DOTS[y & 3][x & 1]

    def line(self, points: Iterable[tuple[int, int]], ink: int, dash: Sequence[bool] = SOLID) -> None:
        """Through all points, from the left to the right. `dash` says which dot columns are drawn, over and over."""
        self.dots(self._along(points, dash), ink)

    def _along(self, points: Iterable[tuple[int, int]], dash: Sequence[bool]) -> Iterator[tuple[int, int]]:
        at = None
        for x, y in points:
            y = min(max(y, -1), self.height)
            if at is None:
                at = x, y
            x0, y0 = at
            before = y0
            for column in range(x0 if x == x0 else x0 + 1, x + 1):
                now = y if column == x else round(y0 + (y - y0) * (column - x0) / (x - x0))
                if dash[column % len(dash)]:
                    step = 1 if now >= before else -1
                    # a steep line fills the rows between its columns
                    for row in range(before + step, now + step, step) if now != before else (now,):
                        yield column, row
                before = now
            at = x, y

    def upright(self, x: int, ink: int) -> None:
        """A dotted line from the top to the bottom."""
        self.dots(((x, y) for y in range(0, self.height, 2)), ink)

    def row(self, row: int) -> tuple[list[str], list[int]]:
        """The signs of a row of cells, and their inks."""
        cells = slice(row * self.columns, (row + 1) * self.columns)
        signs = [chr(EMPTY + bits) if bits else " " for bits in self._bits[cells]]
        return signs, self._inks[cells]
