"""A terminal that has graphics: it answers as kitty or a terminal with sixels does, decodes what it is sent, and says
what picture its user would see.

Kitty's protocol: https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders; sixels: DEC STD 070, chapter
"Sixel Graphics Extension". Of both, what textual-image sends; anything else is an AssertionError.
"""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyte
from numpy.typing import NDArray
from PIL import Image
from textual_image.renderable.tgp import _NUMBER_TO_DIACRITIC

from tests.helpers.terminal import Screen, Terminal

CELL = (10, 20)  # pixels, width and height
ANSWERS = {
    "kitty": {"\x1b_Gi=31": "\x1b_Gi=31;OK\x1b\\", "\x1b[16t": "\x1b[6;20;10t", "\x1b[c": "\x1b[?62;22c"},
    "sixel": {"\x1b[16t": "\x1b[6;20;10t", "\x1b[c": "\x1b[?62;4;22c"},
    "neither": {"\x1b[16t": "\x1b[6;20;10t", "\x1b[c": "\x1b[?62;22c"},
}
PLACEHOLDER = "\U0010eeee"
NUMBERS = {chr(sign): number for number, sign in enumerate(_NUMBER_TO_DIACRITIC)}
_STRING = re.compile(rb"\x1b([_P])(.*?)\x1b\\", re.DOTALL)
_BEGUN = re.compile(rb"\x1b(?:[_P].*)?\Z", re.DOTALL)
Picture = NDArray[np.uint8]


class _Drawn(Screen):
    """An emulated screen on which text takes the place of a picture's pixels."""

    def __init__(self, columns: int, rows: int) -> None:
        self.pixels = np.zeros((rows * CELL[1], columns * CELL[0], 4), np.uint8)  # sixels; transparent: none
        super().__init__(columns, rows)

    def write_process_input(self, data: str) -> None:
        """The terminal below answers for itself."""

    def draw(self, data: str) -> None:
        for sign in data:
            super().draw(sign)
            x, y = self.cursor.x - 1, self.cursor.y
            self.pixels[y * CELL[1] : (y + 1) * CELL[1], max(0, x) * CELL[0] : (x + 1) * CELL[0]] = 0

    def erase_in_display(self, how: int = 0, *args: Any, **kwargs: Any) -> None:
        super().erase_in_display(how, *args, **kwargs)
        if how >= 2:
            self.pixels[:] = 0


class GraphicsTerminal(Terminal):
    """`kind` is a key of ANSWERS."""

    def __init__(
        self, command: list[str], kind: str, *, size: tuple[int, int], cwd: Path, env: Mapping[str, str]
    ) -> None:
        self._answers, self._rest = ANSWERS[kind], b""
        self.images: dict[int, Picture] = {}  # of kitty, by number; deleted ones are gone
        self.placed: dict[int, tuple[int, int]] = {}  # columns and rows of each
        self._parts: dict[int, str] = {}
        super().__init__(command, size=size, cwd=cwd, env=env)

    def came(self, data: bytes) -> None:
        """Text goes to the emulator, what the emulator does not know is taken here, in the order in which it came."""
        if not isinstance(self._screen, _Drawn):
            self._screen = _Drawn(self._screen.columns, self._screen.lines)  # type: ignore[assignment]
            self._emulator = pyte.ByteStream(self._screen)
            self._stream = _Nowhere()  # type: ignore[assignment]
        for question, answer in self._answers.items():
            for _ in range(data.count(question.encode())):
                self.process.send(answer)
        with self._lock:
            data, at = self._rest + data, 0
            for found in _STRING.finditer(data):
                self._text(data[at : found.start()])
                (self._kitty if found[1] == b"_" else self._sixels)(found[2].decode())
                at = found.end()
            begun = _BEGUN.search(data, at)
            end = begun.start() if begun else len(data)
            self._text(data[at:end])
            self._rest = data[end:]

    def _text(self, data: bytes) -> None:
        self._emulator.feed(data.replace(b"\x1b[16t", b"").replace(b"\x1b[>q", b""))

    # --- kitty -------------------------------------------------------------------------------------------------

    def _kitty(self, message: str) -> None:
        assert message[0] == "G", message[:80]
        keys, _, payload = message[1:].partition(";")
        told = dict(pair.split("=") for pair in keys.split(","))
        if told.get("a") == "q":
            return
        if told.get("a") == "d":
            if told.get("d") == "I":  # of others, pictures in place of text are none
                self.images.pop(int(told["i"]), None)
            return
        number = int(told["i"])
        assert told["q"] == "2", "an answer would come among the keys"
        if told.get("a") == "p":
            assert told["U"] == "1" and number in self.images, "placed before it was there"
            self.placed[number] = int(told["c"]), int(told["r"])
            return
        assert told["f"] == "100" and len(payload) <= 4096
        self._parts[number] = self._parts.get(number, "") + payload
        if told["m"] == "0":
            png = Image.open(io.BytesIO(base64.b64decode(self._parts.pop(number))))
            self.images[number] = np.asarray(png.convert("RGB"))

    def _placeholders(self) -> Picture:
        """What stands in place of the signs for pictures."""
        width, height = CELL
        seen = np.zeros((self._screen.lines * height, self._screen.columns * width, 4), np.uint8)
        scaled: dict[int, NDArray[np.uint8]] = {}
        for y in range(self._screen.lines):
            for x in range(self._screen.columns):
                cell = self._screen.buffer[y][x]
                if not cell.data.startswith(PLACEHOLDER) or len(cell.data) < 4:  # half of a cell has come
                    continue
                row, column, high = (NUMBERS[sign] for sign in cell.data[1:4])
                number = high << 24 | int(cell.fg, 16)
                if number not in self.images or number not in self.placed:
                    continue
                if number not in scaled:  # once, not for every cell of it
                    columns, rows = self.placed[number]
                    image = Image.fromarray(self.images[number]).resize((columns * width, rows * height))
                    scaled[number] = np.asarray(image)
                part = scaled[number][row * height : (row + 1) * height, column * width : (column + 1) * width]
                seen[y * height : (y + 1) * height, x * width : (x + 1) * width] = np.dstack(
                    [part, np.full(part.shape[:2], 255, np.uint8)]
                )
        return seen

    # --- sixels ------------------------------------------------------------------------------------------------

    def _sixels(self, message: str) -> None:
        head, begin, body = message.partition("q")
        if not begin or not re.fullmatch(r"[\d;]*", head):
            return  # another control string
        picture = sixels(body)
        left, top = self._screen.cursor.x * CELL[0], self._screen.cursor.y * CELL[1]
        pixels = self._screen.pixels  # type: ignore[attr-defined]
        room = pixels[top : top + picture.shape[0], left : left + picture.shape[1]]
        assert room.shape[0] >= picture.shape[0] - 6, "a picture over the lower edge scrolls the screen"
        part = picture[: room.shape[0], : room.shape[1]]
        room[part[:, :, 3] > 0] = part[part[:, :, 3] > 0]

    # --- what is seen ------------------------------------------------------------------------------------------

    @property
    def picture(self) -> Picture | None:
        """The only picture in sight, without what is round it; None while there is none."""
        with self._lock:
            if not isinstance(self._screen, _Drawn):
                return None
            seen = np.maximum(self._screen.pixels, self._placeholders())
        rows, columns = (np.flatnonzero(seen[:, :, 3].any(axis=axis)) for axis in (1, 0))
        return seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else None


class _Nowhere:
    def feed(self, data: bytes) -> None:
        """All has been drawn."""


def sixels(body: str) -> Picture:
    """The pixels of a sixel string without its frame: RGBA, transparent where nothing was drawn."""
    colours: dict[int, tuple[int, ...]] = {}
    points: list[tuple[int, int, int, int, tuple[int, ...]]] = []  # x, y, bits, times, colour
    x = y = widest = 0
    colour: tuple[int, ...] = (0, 0, 0)
    for sign in re.finditer(r"\"[\d;]*|#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|[?-~]|\$|-", body):
        text = sign[0]
        if text[0] == '"':
            continue
        if text[0] == "#":
            if sign[2] is not None:
                colours[int(sign[1])] = tuple(round(int(c) * 255 / 100) for c in sign.group(2, 3, 4))
            colour = colours[int(sign[1])]
        elif text == "$":
            x = 0
        elif text == "-":
            x, y = 0, y + 6
        else:
            times, bits = (int(sign[5]), sign[6]) if text[0] == "!" else (1, text)
            points.append((x, y, ord(bits) - 0x3F, times, colour))
            x += times
            widest = max(widest, x)
    picture = np.zeros((y + 6, widest, 4), np.uint8)
    for left, top, bits, times, of in points:
        for i in range(6):
            if bits >> i & 1:
                picture[top + i, left : left + times] = (*of, 255)
    drawn = np.flatnonzero(picture[:, :, 3].any(axis=1))
    return picture[: drawn[-1] + 1] if len(drawn) else picture
