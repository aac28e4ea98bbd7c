"""The first and the last frame that training takes of a clip, cropped as it crops them, and what it sees in words.

The pictures are read in a thread, which is ended when another clip is to be shown.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image as PILImage
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from presets.clips.batches import clip_buckets
from presets.clips.clip_facts import ClipFacts
from presets.clips.likeness.small_pictures import Picture, image_picture, pictures_at
from presets.clips.likeness.training_view import crop_of, taken, view_lines
from presets.errors import ClipError
from presets.job.schema import DatasetPanel
from presets.look import Look, LookEnded
from presets.text import escaped, sentences
from wanlora_tui.terminal.pictures import picture_class

LONGEST = 320  # pixels of a frame's longer side
REST = 0.2  # seconds that the cursor rests on a clip before its frames are read
KEPT = 64  # clips whose frames are kept in memory
Key = tuple[str, int, tuple[float, float], tuple[float, float]]  # path, its time of change, frames, crop


@runtime_checkable
class DrawsPictures(Protocol):
    """An app that knows how its terminal draws pictures."""

    @property
    def image(self) -> type[Widget]: ...


@dataclass
class FramesRead(Message):
    key: Key
    pictures: list[PILImage.Image]
    problem: str


class ClipFrames(Vertical):
    """`show` the clip under the cursor; what it says stands there at once, the pictures once they are read."""

    DEFAULT_CSS = """
    ClipFrames { height: auto; }
    ClipFrames .frames { height: 10; }
    ClipFrames .frame { width: 1fr; height: 1fr; }
    ClipFrames .frame > .picture { width: auto; height: auto; }
    ClipFrames .frame > .picture.-none { display: none; }
    /* as high as ever: else each clip would lay out the whole form anew */
    ClipFrames .seen { height: 6; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._kept: OrderedDict[Key, tuple[list[PILImage.Image], str]] = OrderedDict()
        self._look = Look()
        self._wanted: Key | None = None
        self._timer: Timer | None = None
        self._asked: tuple[ClipFacts | None, DatasetPanel | None, str] = (None, None, "")

    def compose(self) -> ComposeResult:
        image = self.app.image if isinstance(self.app, DrawsPictures) else picture_class()
        with Horizontal(classes="frames"):
            for which in ("first", "last"):
                with Container(classes="frame"):
                    picture = image(classes=f"picture -none {which}")
                    yield picture
        yield Static("", classes="seen", markup=False)

    def on_mount(self) -> None:
        clip, panel, note = self._asked
        self.show(clip, panel, note=note)

    def on_unmount(self) -> None:
        self._look.end()

    def show(self, clip: ClipFacts | None, panel: DatasetPanel | None, *, note: str = "") -> None:
        """Without a panel there is no job yet, so nothing is known of what trains; `note` is said instead of a clip."""
        self._asked = clip, panel, note
        if not self.query(".seen"):  # on_mount will show it
            return
        if clip is None or panel is None:
            self._want(None)
            self._say(note)
            return
        first, last = taken(clip, panel)
        buckets = list(clip_buckets(clip, panel).values())
        crop = crop_of(clip, buckets[0]) if buckets else None
        self._say("\n".join(filter(None, (note, *view_lines(clip, panel)))))
        key = (clip.path, changed_at(clip.path), (first, last), (crop.sides, crop.ends) if crop else (0.0, 0.0))
        if key == self._wanted:
            if key in self._kept and (problem := self._kept[key][1]):
                self._say(problem)
            return
        self._want(key)
        if key in self._kept:
            self._draw(*self._kept[key])
        else:
            self._draw([], "")
            self._timer = self.set_timer(REST, lambda: self._begin(clip, key))

    def _want(self, key: Key | None) -> None:
        self._wanted = key
        self._look.end()
        if self._timer is not None:
            self._timer.stop()
        if key is None:
            self._draw([], "")

    def _begin(self, clip: ClipFacts, key: Key) -> None:
        if key == self._wanted:
            self._look = Look()
            self._read(clip, key, self._look)

    @work(thread=True, group="frames", exit_on_error=False)
    def _read(self, clip: ClipFacts, key: Key, look: Look) -> None:
        first, last = key[2]
        try:
            if clip.kind == "image":
                found = [image_picture(Path(clip.path), LONGEST)]
            else:
                times = [first] if first == last else [first, last]
                found = pictures_at(Path(clip.path), times, LONGEST, look.raise_if_ended)
        except LookEnded:
            return
        except (ClipError, OSError) as e:
            problem = sentences(f"✗ {Path(clip.path).name} {e.what}", e.fix) if isinstance(e, ClipError) else f"✗ {e}"
            self.post_message(FramesRead(key, [], problem))
            return
        self.post_message(FramesRead(key, [cropped(picture, key[3]) for picture in found], ""))

    @on(FramesRead)
    def _there(self, event: FramesRead) -> None:
        event.stop()
        self._kept[event.key] = (event.pictures, event.problem)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        if event.key == self._wanted:
            self._draw(event.pictures, event.problem)

    def _draw(self, pictures: list[PILImage.Image], problem: str) -> None:
        for which, picture in zip(self.query(".picture"), [*pictures, None, None], strict=False):
            if which.image is not picture:  # type: ignore[attr-defined]  # every class of textual_image.widget has it
                which.image = picture  # type: ignore[attr-defined]
                which.set_class(picture is None, "-none")
        if problem:
            self._say(problem)

    def _say(self, text: str) -> None:
        self.query_one(".seen", Static).update(Text(escaped(text)), layout=False)


def changed_at(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def cropped(picture: Picture, crop: tuple[float, float]) -> PILImage.Image:
    """What is left of a frame where so much of each side is cut off."""
    height, width = picture.shape[:2]
    x, y = round(crop[0] * width), round(crop[1] * height)
    return PILImage.fromarray(picture[y : height - y, x : width - x].copy())
