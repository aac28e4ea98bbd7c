"""The wizard alone in a minimal app, with real clips and the smallest base model that the checks accept."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from safetensors.numpy import save_file
from textual import events
from textual.app import App
from textual.notifications import Notification, Notifications
from textual.pilot import Pilot
from textual.widgets import Static

import wanlora_tui
from tests.helpers.videos import write_clip, write_image
from tests.helpers.waiting import PATIENCE, until_async
from wanlora_tui.screens.wizard import WizardScreen
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.key_order import KeysInOrder

# all that each app has notified, gone or not; tests/wanlora_tui/conftest.py keeps it
NOTIFIED: WeakKeyDictionary[Notifications, list[Notification]] = WeakKeyDictionary()


class WizardApp(KeysInOrder):
    CSS_PATH = Path(wanlora_tui.__file__).with_name("app.tcss")

    def __init__(self, draft: Path) -> None:
        super().__init__()
        self.draft, self.result = draft, "not dismissed"

    def on_mount(self) -> None:
        self.push_screen(WizardScreen(self.draft), self._dismissed)

    def _dismissed(self, result: str | None) -> None:
        self.result = result  # type: ignore[assignment]


async def until(pilot: Pilot[None], condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, and then for all that the app has to do at once."""

    def met() -> Any:
        assert pilot.app._exception is None, "the app has died of an error"
        return condition()

    try:
        await until_async(met, what)
    except AssertionError as e:
        raise AssertionError(f"{e}; {what_it_says(pilot.app)}") from None
    await pilot.pause()


@asynccontextmanager
async def wizard(draft: Path, *, size: tuple[int, int] = (80, 24)) -> Any:
    """The running wizard; leaving the block is an abrupt end."""
    app = WizardApp(draft)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(
            pilot, lambda: not isinstance(app.screen, WizardScreen) or app.screen.pane is not None, "the first step"
        )
        yield pilot


def screen_of(pilot: Pilot[None]) -> WizardScreen:
    found = next(s for s in pilot.app.screen_stack if isinstance(s, WizardScreen))
    return found


@contextmanager
def patient(app: KeysInOrder) -> Iterator[None]:
    """No key is given up meanwhile: the app goes on to the next one after some seconds, in which a very busy machine
    may not get through one."""
    app.patience, before = PATIENCE, app.patience
    try:
        yield
    finally:
        app.patience = before


def type_ahead(app: App[Any], *keys: str) -> None:
    """Keys that are all there before the first is looked at: names of keys, or texts of letters in one."""
    names = {"tab": "\t", "backspace": "\x7f", "down": None, "shift+tab": None, "f5": None}
    for key in keys:
        for name, character in [(key, names[key])] if key in names else [(c, c) for c in key]:
            app.post_message(events.Key(name, character))


async def type_text(pilot: Pilot[None], text: str) -> None:
    """Fast: all of it is there before the first character has been looked at. Waits until it has been taken."""
    app = pilot.app
    if not isinstance(app, KeysInOrder):
        await pilot.press(*text)
        return
    app.clear_notifications()
    with patient(app):
        type_ahead(app, text)
        await pilot.pause()
        await until(pilot, lambda: not app.is_taking, f"the end of {text!r}")


async def at_step(pilot: Pilot[None], name: str) -> None:
    await until(
        pilot,
        lambda: (
            screen_of(pilot).step == name and screen_of(pilot).pane is not None and screen_of(pilot).pane.is_mounted
        ),
        f"step {name}",
    )


async def scanned(pilot: Pilot[None]) -> None:
    state = screen_of(pilot).state
    await until(
        pilot,
        lambda: state.draft.folders and all(f in state.scans for f in state.draft.folders) and state.ready,
        "the clips",
    )


async def focus_field(pilot: Pilot[None], path: str) -> FieldInput:
    """Walk to a field with the keyboard alone, as far as Tab goes."""
    for _ in range(80):
        focused = pilot.app.focused
        row = next((n for n in focused.ancestors if isinstance(n, FieldInput)), None) if focused is not None else None
        if row is not None and row.path == path:
            return row
        await pilot.press("tab")
    raise AssertionError(f"Tab does not reach {path}")


def screen_text(app: App[Any]) -> str:
    """What stands on the screen, as plain text."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def what_it_says(app: App[Any]) -> str:
    """The screen, and all that has been notified so far."""
    screen = screen_text(app) if app.screen_stack else "nothing: it is closed"
    notified = [": ".join(filter(None, (n.title, n.message))) for n in NOTIFIED.get(app._notifications, ())]
    return "\n".join([f"the screen says:\n{screen}", "it has notified:", *(notified or ["nothing"])])


def static(pilot: Pilot[None], selector: str) -> str:
    return str(screen_of(pilot).query_one(selector, Static).render())


@cache
def _film(frames: int) -> bytes:
    with TemporaryDirectory() as place:
        return write_clip(Path(place) / "clip.mp4", frames=frames, fps=16.0, width=96, height=96).read_bytes()


def make_clips(folder: Path, count: int = 3, *, captions: bool = True, frames: int = 48) -> Path:
    """Clips of the same bytes."""
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"clip_{i:02}.mp4").write_bytes(_film(frames))
        if captions:
            (folder / f"clip_{i:02}.txt").write_text(f"orbit {90 * (i + 1)} around the subject")
    return folder


def make_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, 96, 96)


def make_base(folder: Path) -> Path:
    """A folder laid out as a diffusers Wan 2.2 I2V model, with next to no weights in it: enough for the checks, not for
    training."""
    config = {
        "in_channels": 36,
        "out_channels": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 64,
    }
    files = {
        "model_index.json": {"boundary_ratio": 0.9},
        "scheduler/scheduler_config.json": {},
        "tokenizer/tokenizer.json": {},
        "vae/config.json": {},
        "text_encoder/config.json": {},
    }
    files |= {f"{expert}/config.json": config for expert in ("transformer", "transformer_2")}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for part in ("transformer", "transformer_2", "vae"):
        save_file(
            {"patch_embedding.weight": np.zeros((32, 36, 1, 2, 2), np.float32)},
            str(folder / part / "diffusion_pytorch_model.safetensors"),
        )
    save_file({"shared.weight": np.zeros((8, 8), np.float32)}, str(folder / "text_encoder" / "model.safetensors"))
    return folder


def as_large_as_the_real_one(base: Path) -> Path:
    """Such a base with the widths and sizes of Wan 2.2 I2V A14B, for which a plan is made: its weights are holes."""
    large = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
    patches, parameters = [5120, 36, 1, 2, 2], 14_300_000_000
    header = {
        "patch_embedding.weight": {"dtype": "BF16", "shape": patches, "data_offsets": [0, 2 * math.prod(patches)]},
        "nothing": {
            "dtype": "BF16",
            "shape": [parameters],
            "data_offsets": [2 * math.prod(patches), 2 * (math.prod(patches) + parameters)],
        },
    }
    said = json.dumps(header).encode()
    for expert in ("transformer", "transformer_2"):
        config = base / expert / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | large))
        with (base / expert / "diffusion_pytorch_model.safetensors").open("wb") as f:
            f.write(len(said).to_bytes(8, "little") + said + expert[-2:].encode())  # no two experts are alike
            f.truncate(8 + len(said) + 2 * (math.prod(patches) + parameters))
    return base
