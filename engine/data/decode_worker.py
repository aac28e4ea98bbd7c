"""The data worker: a small process that decodes clips into memory it shares with the trainer.

Messages are msgpack behind a 4-byte length. Tasks come on standard input; answers go to what was standard output. The
worker ends when its input or its parent ends, ignores SIGINT, SIGTERM and SIGHUP (a stopping trainer may still
want its batch), and imports no torch, so it starts in a fraction of a second and holds little: 250 MB on 4K
(benchmarks/worker_memory.py).
"""

import mmap
import os
import select
import signal
import struct
import traceback
from typing import BinaryIO

import msgspec
import numpy as np
from msgspec import Struct

from engine.data.frames import DecodeRequest
from engine.data.masks import Mask, decode_masked
from presets.errors import UserError

LENGTH = struct.Struct("<I")
PARENT_CHECK = 5.0  # seconds; the end of the input comes sooner, unless some other process holds the pipe open


class Task(Struct, frozen=True):
    """Decode `request` to byte `offset` of the shared memory, and its mask to byte `grid`."""

    request: DecodeRequest
    offset: int | None  # None: its pixels are not needed
    mask: Mask | None = None
    grid: int = 0


class DecodeAnswer(Struct, frozen=True):
    """How a task went: nothing set means well. The first answer of a worker, before any task, says that it is ready."""

    what: str = ""  # with where and fix: a UserError
    where: str = ""
    fix: str = ""
    bug: str = ""  # a traceback


def write_message(stream: BinaryIO, message: Task | DecodeAnswer) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def read_message(stream: BinaryIO) -> bytes | None:
    """The body of the next message, or None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = stream.read(size)
    return body if len(body) == size else None


def perform(task: Task, memory: memoryview, *, threads: int) -> DecodeAnswer:
    bucket = task.request.bucket
    shape = (bucket.frames, bucket.height, bucket.width, 3)
    out = None if task.offset is None else np.ndarray(shape, np.uint8, memory, task.offset)
    grid = None if task.mask is None else np.ndarray(bucket.latent, np.float32, memory, task.grid)
    try:
        decode_masked(task.request, out, task.mask, grid, threads=threads)
    except UserError as e:
        return DecodeAnswer(what=e.what, where=e.where, fix=e.fix)
    except Exception:  # the trainer raises it again; a worker that died of it would only hide it
        return DecodeAnswer(bug=traceback.format_exc())
    return DecodeAnswer()


def main(memory_fd: int, threads: int, parent: int) -> None:
    """The life of a worker; `memory_fd` is the shared memory, `parent` the trainer's process id."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tasks = os.fdopen(0, "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a codec prints must not end up between the answers
    memory = memoryview(mmap.mmap(memory_fd, 0))
    try:
        write_message(answers, DecodeAnswer())
        while os.getppid() == parent:
            # One task at a time is under way, so nothing waits in the reader's buffer where select() would not see it.
            if not select.select([tasks], [], [], PARENT_CHECK)[0]:
                continue
            body = read_message(tasks)
            if body is None:
                return
            write_message(answers, perform(msgspec.msgpack.decode(body, type=Task), memory, threads=threads))
    except BrokenPipeError:  # the trainer has ended, and with it whoever would read a traceback
        os._exit(1)
