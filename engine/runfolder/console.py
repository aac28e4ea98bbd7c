"""What `python -m engine` prints on stderr: a progress bar on a terminal, plain lines otherwise.

It shows events; they are written by engine.runfolder.event_log.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from presets.text import escaped, loss_text, unescaped

BYTES = 10_000_000  # what is counted so high is bytes


class Console:
    """An event listener. On a terminal one line is redrawn for steps and phases; everything else scrolls above it.

    Where nobody reads any more, the terminal or the pipe's other end closed, it falls silent: a run does not end
    of that.
    """

    def __init__(self) -> None:
        self._view = RunView()
        self._silent = False
        self._bar = None
        self._terminal = unescaped(sys.stderr)  # the bar moves its cursor
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=0,
                file=self._terminal,
                dynamic_ncols=True,
                bar_format="{desc} {bar} {n_fmt}/{total_fmt} {postfix}",
            )

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def show(self, event: Event) -> None:
        if self._silent:
            return
        try:
            self._show(event)
        except OSError:
            self._silent = True
            # whatever else is said there would fail as well, at the interpreter's end too
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())

    def _show(self, event: Event) -> None:
        view = self._view
        view.log.clear()
        apply_event(view, event)
        for line in view.log:
            self._print(line.text)
        step = f"{view.expert} loss {loss_text(view.loss)}, {view.seconds_per_step:.2f} s/step"
        if self._bar is None:
            if event.kind == "step":
                self._print(f"step {view.step}/{view.steps} {step}")
        elif event.kind in ("step", "phase"):
            self._bar.set_description_str(escaped(f"{view.phase.name} {view.phase.text}".rstrip()), refresh=False)
            self._bar.set_postfix_str(escaped(step) if event.kind == "step" else "", refresh=False)
            self._bar.n, self._bar.total = view.phase.done, view.phase.total
            self._bar.unit_scale = view.phase.total >= BYTES
            self._bar.refresh()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(escaped(text), file=self._terminal)
        else:
            print(text, file=sys.stderr, flush=True)
