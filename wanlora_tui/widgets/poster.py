"""The newest preview: its poster picture, and always the path of its file, for terminals that draw no pictures."""

from pathlib import Path

from PIL import Image as PILImage
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Static

from presets.runs.run_view import PreviewSet


def read_picture(path: Path, host: str, *, of: Path | None = None) -> tuple[PILImage.Image | None, str]:
    """A picture (None when it is on another `host`, or cannot be read) and the words under it: where it, or what it is
    a poster `of`, lies."""
    where = of or path
    if host:
        return None, f"scp {host}:{where} ."
    try:
        with PILImage.open(path) as opened:
            return opened.convert("RGB"), str(where)
    except (OSError, ValueError) as e:
        what = "poster" if of else "picture"
        return (
            None,
            f"The {what} cannot be shown ({e.strerror if isinstance(e, OSError) and e.strerror else e}).\n{where}",
        )


class Poster(Vertical):
    """`image` is the textual-image widget class that this terminal can show."""

    def __init__(self, image: type[Widget], *, host: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self._class, self._host = image, host
        self._shown: tuple[str, int] | None = None
        self.border_title = "preview"

    def compose(self) -> ComposeResult:
        yield Container(self._class(id="poster-image"), id="poster-frame")
        yield Static(id="poster-text")

    def show(self, samples: list[PreviewSet], run_dir: Path) -> None:
        """Draw the newest sample; a picture that cannot be read is said, not hidden."""
        if not samples:
            self.query_one("#poster-text", Static).update("No preview yet.")
            return
        newest = samples[-1]
        poster = run_dir / newest.poster
        shown = (str(poster), newest.step)
        if shown == self._shown:
            return
        self._shown = shown
        self.border_title = f"preview at step {newest.step}"
        picture, note = read_picture(poster, self._host, of=run_dir / newest.path)
        image = self.query_one("#poster-image")
        image.image = picture  # type: ignore[attr-defined]  # every class of textual_image.widget has it
        image.display = picture is not None
        self.query_one("#poster-text", Static).update(
            Text.assemble((f"{newest.prompt}\n", "italic"), note, overflow="fold")
        )
