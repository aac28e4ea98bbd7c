"""Textual's driver for Linux and macOS, on terminals as they are: slow, odd, resized to nothing, hung up or asked to
end."""

import asyncio
import os
import select
import signal
import sys
import termios
import time
from functools import partial
from types import FrameType
from typing import Any, ClassVar, TextIO

from textual import events
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Size
from textual.message import Message

from wanlora_tui.terminal.answers import ESCAPE
from wanlora_tui.terminal.conversation import LATEST_SECONDS, Conversation

POLL_SECONDS = 0.1  # between two looks at what was typed in part
RECENT_SECONDS = 1.0  # after the last key, in which it may have been one in part
SIZE_SECONDS = 1 / 60  # in which sizes that follow each other count as one
# in which the program has ended after a signal; it is ended where it stands afterwards
END_SECONDS = round(LATEST_SECONDS) + 4


class Display:
    """Where the screens are drawn. Once the terminal is closed nothing is, and nobody waits for it."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._gone = file, False

    def write(self, text: str) -> None:
        if not self._gone:
            try:
                self._file.write(text)
            except OSError:
                self._gone = True

    def flush(self) -> None:
        if not self._gone:
            try:
                self._file.flush()
            except OSError:
                self._gone = True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()


class TerminalDriver(LinuxDriver):
    """Reads through the conversation that was begun before the screens, and draws on stdout: stderr may be a file."""

    conversation: ClassVar[Conversation]

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        assert sys.__stdout__ is not None
        self._file = Display(sys.__stdout__)  # type: ignore[assignment]
        self._is_on = False
        self._new_size: asyncio.TimerHandle | None = None  # it is about to be looked at
        self._reported: events.Resize | None = None  # the last size that the terminal has sent among the keys
        self._over, self._end = os.pipe()  # tells the reader to end: it looks at nothing while no key comes

    def start_application_mode(self) -> None:
        super().start_application_mode()
        signal.signal(signal.SIGWINCH, self._resized)
        self.conversation.others_asked()
        self.conversation.on_end_signal(self._end_soon)
        self._is_on = True

    def stop_application_mode(self) -> None:
        """Give the terminal back at once: the program may run for a while, until its threads have ended."""
        self._is_on = False
        if self._new_size is not None:
            self._new_size.cancel()
            self._new_size = None
        super().stop_application_mode()
        self.conversation.leave(self.write)
        self.conversation.on_end_signal(self.conversation.end)

    def disable_input(self) -> None:
        os.write(self._end, b"x")
        super().disable_input()  # waits for the reader
        os.read(self._over, 1)

    def _resized(self, number: int, frame: FrameType | None) -> None:
        """Not to be told here: of two signals at once the later is handled within the first, and its size would be
        overtaken by the one before it."""
        if not self._in_band_window_resize:
            self._loop.call_soon_threadsafe(self._await_size)

    def process_message(self, message: Message) -> None:
        """Called by the reader: sizes that the terminal sends among the keys wait like those that a signal tells of."""
        if isinstance(message, events.Resize):
            self._reported = message
            self._loop.call_soon_threadsafe(self._await_size)
        else:
            super().process_message(message)

    def _await_size(self) -> None:
        if self._new_size is None:
            self._new_size = self._loop.call_later(SIZE_SECONDS, self._tell_size)

    def _tell_size(self) -> None:
        """A size that is the old one again was another meanwhile: the terminal has cut off what was drawn."""
        self._new_size = None
        resized, self._reported = self._reported, None
        if resized is None:
            size = Size(*self._get_terminal_size())
            resized = events.Resize(size, size)
        if resized.size == self._app.size:
            self._app.refresh(layout=True)
        else:
            super().process_message(resized)

    def _sigcont_application(self, *_: object) -> None:
        """A SIGSTOP cannot be heard: all may still be on after it. Started once more beside itself, it would read keys
        twice and never end. It is begun anew where a shell has had the terminal meanwhile."""
        if not self._must_signal_resume:
            if not self._is_on or self._is_ours():
                return
            self.suspend_application_mode()
            self._must_signal_resume = True
        super()._sigcont_application()

    def _is_ours(self) -> bool:
        """Whether the terminal hands on single keys, as we left it."""
        try:
            return not termios.tcgetattr(self.fileno)[3] & termios.ICANON
        except termios.error:
            return True

    @property
    def is_behind(self) -> bool:
        """Whether something drawn still waits to be written."""
        return self._writer_thread is not None and not self._writer_thread._queue.empty()

    def _end_soon(self, number: int, frame: FrameType | None = None) -> None:
        """Close the app as if its user had, with the exit code that shells give to a program ended by this signal."""
        signal.alarm(END_SECONDS)
        self._loop.call_soon_threadsafe(partial(self._app.exit, return_code=128 + number))

    def run_input_thread(self) -> None:
        """Hand on keys, whole, until the screens end or the terminal hangs up."""
        conversation, parser = self.conversation, XTermParser(self._debug)

        def hand_on(text: str) -> None:
            nonlocal parser
            try:
                for message in parser.feed(text) if text else ():
                    self.process_message(message)
            except (ValueError, OverflowError):  # of numbers that no key has: Textual's parser ends with it
                parser = XTermParser(self._debug)

        typed, conversation.typed = conversation.typed, ""
        hand_on(typed)
        typed_at = time.monotonic()
        while not self.exit_event.is_set():
            due, now = conversation.input.due, time.monotonic()
            wait = POLL_SECONDS if due is None else min(POLL_SECONDS, max(0.0, due - now))
            recent = due is not None or now < typed_at + RECENT_SECONDS
            if self.fileno in select.select([self.fileno, self._over], [], [], wait if recent else None)[0]:
                typed_at = now
                try:
                    data = os.read(self.fileno, 4096)
                except OSError:
                    data = b""
                if not data:
                    self._end_soon(signal.SIGHUP)
                    return
                hand_on(conversation.keys(data))
            expired = conversation.input.expire(time.monotonic())
            if expired == ESCAPE:
                self.process_message(events.Key("escape", ESCAPE))
            else:
                hand_on(expired)
            for message in parser.tick():
                self.process_message(message)


def driver_on(conversation: Conversation) -> type[TerminalDriver]:
    """The class that Textual makes its driver of."""
    return type("Driver", (TerminalDriver,), {"conversation": conversation})
