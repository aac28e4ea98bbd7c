"""Attempts of the real trainer, quick to start: a process that has everything imported forks a child for each.

The children are real processes with real signals: they can be killed at any instant. All of them compute with one
thread, so that their results can be compared bit for bit and two of them can run side by side. `python -m
tests.helpers.training.attempts` is the process that forks.
"""

import gc
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from presets.runs.events import Event
from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.waiting import PATIENCE

Orders = dict[int, list[dict[str, Any]]]  # step -> commands, as in engine.runfolder.control
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Attempt:
    """One trainer process. `code` is as subprocess has it: minus the signal that killed it."""

    pid: int
    stderr: Path
    process: subprocess.Popen[Any] | None = None  # when it is a child of this very process
    code: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.process is not None:
            threading.Thread(target=self._reap, args=[self.process], daemon=True).start()

    def _reap(self, process: "subprocess.Popen[Any]") -> None:
        self.code = process.wait()
        self.ended.set()

    def said(self) -> str:
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""  # the child makes it

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Before `ended` the process is at worst a zombie: its number is still its own."""
        if self.process is not None:
            self.process.send_signal(number)  # knows whether it is gone
        elif not self.ended.is_set():
            os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.ended.wait(PATIENCE), f"still running after {PATIENCE:.0f} s: {self.said()[-2000:]}"
        assert self.code is not None
        return self.code

    def wait_until_struck(self) -> None:
        self.wait_until(lambda: "on purpose" in self.said())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds or the process is gone."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and not self.ended.is_set():
            assert time.monotonic() < deadline, self.said()[-2000:]
            time.sleep(0.005)


class Trainers:
    """Starts attempts. A context manager; what still runs at its end is killed."""

    def __init__(self, *, cache: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.training.attempts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **UNCOMPILED, "XDG_CACHE_HOME": str(cache)},
        )
        self._attempts: dict[int, Attempt] = {}
        self._started: dict[str, Attempt] = {}
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> "Trainers":
        return self

    def __exit__(self, *_: object) -> None:
        for attempt in list(self._attempts.values()):
            attempt.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def start(
        self,
        job: Path,
        *,
        resume: bool = False,
        from_step: int | None = None,
        faults: Sequence[str] = (),
        workers: int = 0,
        retry_seconds: float = 15.0,
        orders: Orders | None = None,
        environment: dict[str, str] | None = None,
        impatient: Path | None = None,
        copies: Mapping[str, Path] | None = None,
        terminal: str = "",
        gpus: Sequence[int] | None = None,
    ) -> Attempt:
        """Train the job in a new process, as `python -m engine JOB [--resume [--from STEP]] [--fault ...]` does. Orders
        arrive when their step is told. `environment`: more of it, as torchrun gives. `impatient`: a file; once it is
        there, a rank that does nothing for seconds hangs. `copies`: fault -> a new folder; where that fault would
        strike, the runs are copied there as they lie, and the attempt goes on. `terminal`: its path; the attempt leads
        a session on it and says all there. `gpus`: of the job's only these."""
        stderr = job.parent / f"stderr-{time.monotonic_ns()}"
        request = {
            "job": str(job),
            "resume": resume,
            "from_step": from_step,
            "orders": list((orders or {}).items()),
            "faults": list(faults),
            "workers": workers,
            "stderr": str(stderr),
            "retry_seconds": retry_seconds,
            "environment": environment or {},
            "impatient": str(impatient or ""),
            "copies": {fault: str(folder) for fault, folder in (copies or {}).items()},
            "terminal": terminal,
            "gpus": gpus,
        }
        assert self._process.stdin is not None
        with self._news:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            assert self._news.wait_for(
                lambda: str(stderr) in self._started or self._process.poll() is not None, PATIENCE
            ), "nothing forks"
            return self._started[str(stderr)]

    def run(self, job: Path, **how: Any) -> int:
        return self.start(job, **how).wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "code" in news:
                    attempt = self._attempts.pop(news["pid"])
                    attempt.code = news["code"]
                    attempt.ended.set()
                else:
                    self._attempts[news["pid"]] = self._started[news["stderr"]] = Attempt(
                        news["pid"], Path(news["stderr"])
                    )
                self._news.notify_all()


def serve() -> None:
    """Fork an attempt for each line on stdin; say on stdout who began and who ended, and how."""
    import torch

    torch.set_num_threads(1)
    from engine.system.quick_imports import import_diffusers

    import_diffusers()  # as the trainer itself
    import numpy.ma  # noqa: F401
    import tomlkit  # noqa: F401
    from PIL import Image

    import engine.encode.text_embeddings
    import engine.run
    import engine.training.prepare
    import engine.training.trainer  # noqa: F401
    import presets.clips.probe  # noqa: F401
    from engine.training.placement import versions

    Image.init()  # imports all formats, which each child would do
    versions()  # kept from here on: each child need not look through the installed packages
    gc.freeze()  # what was imported is no garbage: the children need not look through it

    running: set[int] = set()
    waiting = b""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.005 if running else None)
        if readable:
            block = os.read(sys.stdin.fileno(), 1 << 16)
            if not block:
                return
            *lines, waiting = (waiting + block).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if (pid := os.fork()) == 0:
                    _attempt(request)
                running.add(pid)
                print(json.dumps({"pid": pid, "stderr": request["stderr"]}), flush=True)
        for pid in list(running):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                running.remove(pid)
                print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def _attempt(request: dict[str, Any]) -> None:
    """The child: becomes a trainer and never returns."""
    code = 70
    try:
        out = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if request["terminal"]:
            os.setsid()
            terminal = os.open(request["terminal"], os.O_RDWR)  # which makes it the one of the session
            for descriptor in (0, 1, 2):
                os.dup2(terminal, descriptor)
            os.close(terminal)
        os.environ |= request["environment"]
        from engine.run import run_job
        from engine.runfolder import disk_full
        from engine.system import fault_injection

        disk_full.RETRY_SECONDS = request["retry_seconds"]
        fault_injection.arm([*request["faults"], *request["copies"]])
        copy_at(Path(request["job"]).parent / "runs", request["copies"])
        order_at(Path(request["job"]).parent, dict(request["orders"]))
        if request["impatient"]:
            impatient_from(Path(request["impatient"]))
        code = run_job(
            Path(request["job"]),
            None,
            resume=request["resume"],
            from_step=request["from_step"],
            workers=request["workers"],
            device="cpu",
            gpus=request["gpus"],
        )
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def order_at(folder: Path, orders: Orders) -> None:
    """In this process: orders come to the trainer while it says that their step is done, so between this step and the
    next."""
    from engine.runfolder.console import Console

    show = Console.show

    def shown(self: Console, event: Event) -> None:
        show(self, event)
        for n, command in enumerate(orders.pop(event.data["step"], []) if event.kind == "step" else []):
            (control,) = folder.glob("runs/*/control")
            aside = control / f"{n}.tmp"
            aside.write_text(json.dumps({"id": f"{event.seq}-{n}", **command}))
            aside.rename(control / f"{event.seq}-{n}.json")

    Console.show = shown  # type: ignore[method-assign]


def copy_at(runs: Path, copies: Mapping[str, str]) -> None:
    """In this process: these faults do not strike. What a kill would leave there is copied, byte by byte."""
    from engine.system import fault_injection

    strike = fault_injection._strike

    def struck(fault: fault_injection.Fault) -> None:
        if into := copies.get(f"{fault.kind}:{fault.point}:{fault.step}"):
            shutil.copytree(runs, into)
        else:
            strike(fault)

    fault_injection._strike = struck


def impatient_from(file: Path) -> None:
    """In this process: the limit after which a rank hangs is short once the file is there. Before, no rank of a busy
    machine is taken for one that hangs."""
    from engine.parallel import signs

    signs.LOOK_SECONDS = 0.2
    look = signs.Signs.look

    def looked(self: signs.Signs) -> bool:
        if file.exists():
            self._limit = 3.0
        return look(self)

    signs.Signs.look = looked  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
