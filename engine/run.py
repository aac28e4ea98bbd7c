"""One job from its file to its LoRA files: checks, run folder, lock, training, and an honest last event. The training
itself is engine.training; where an attempt begins is engine.runfolder.resume."""

import fcntl
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.parallel.own_gpu import as_here, left, notices, own_gpu, require_as_many
from engine.parallel.parts import Rank, parts_of
from engine.runfolder.console import Console
from engine.runfolder.control import Control, StopRequested
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint, find_resume_point
from engine.system import fault_injection
from engine.system.durable_files import make_folder
from engine.system.quick_imports import import_diffusers, uncollected
from engine.system.wake_card import wake_card
from presets.atomic_file import fsync
from presets.errors import UserError
from presets.facts.facts import Facts, used_gpus
from presets.facts.gather import gather
from presets.file_names import require_utf8
from presets.files import open_own
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, default_out, load_job, save_job
from presets.machine.limits import cores
from presets.machine.machine import read_machine
from presets.machine.shell import without_secrets
from presets.machine.visible_gpus import shown_to_cuda
from presets.planner.plan import LESS_MEMORY
from presets.report.page import write_page
from presets.rules.check import check_job
from presets.runs.events import EVENTS_FILE
from presets.runs.run_folder import LOCK_FILE, require_no_links
from presets.text import sentences, to_type

if TYPE_CHECKING:
    from engine.parallel.team import Loss, Team

DONE, FAILED, USAGE, RESUMABLE = 0, 1, 2, 75  # 75 is EX_TEMPFAIL: saved, start me again
SAID_SECONDS = 3.0  # for the first rank to say what is wrong: torchrun ends it as soon as another has ended


@dataclass(frozen=True)
class Limits:
    """What an attempt may use; None: what it finds."""

    workers: int | None  # processes that decode clips
    device: str | None  # as torch calls it
    vram: int | None  # bytes of the card's memory
    gpus: Sequence[int] | None  # of those that the job names


@dataclass
class Crew:
    """The processes that train with this one, once there are any."""

    team: "Team | None" = None
    waiting: Rank | None = None  # this one, while others look for it that nobody else would end
    said: str = ""  # why there is nothing to do for them


def run_job(
    job_path: Path,
    out: Path | None,
    *,
    resume: bool,
    from_step: int | None = None,
    accept_changes: bool = False,
    workers: int | None = None,
    device: str | None = None,
    vram_gib: float | None = None,
    gpus: Sequence[int] | None = None,
) -> int:
    """Train the job at `job_path` into OUT/NAME and return the exit code. User errors are printed and logged, never
    raised.

    `resume` continues from the newest checkpoint, or goes back to that of `from_step`; with `accept_changes` also when
    the run is no longer the one that was begun. `vram_gib` caps the card's memory. `gpus`: of those that the job names
    only these, because the others are gone.
    """
    limits = Limits(workers, device, None if vram_gib is None else int(vram_gib * 2**30), gpus)
    crew = Crew()
    try:
        rank = Rank.of()
        if rank.number > 0:
            return _follow(job_path, rank, limits)
        job = load_job(job_path)
        parts_of(job, rank.world)
        if rank.world > 1 and rank.here != rank.world:  # torchrun ends those of its host
            _own_machine(job_path, left(job, gpus), rank, limits)
            crew.waiting = rank  # all that the others look at themselves is well
        base_dir = job_path.resolve().parent
        require_utf8(out or base_dir)
        folder = (out.resolve() if out else default_out(job_path)) / job.job.name
        require_as_many(left(job, gpus), rank.on_host)
        if resume and not holds_a_run(folder):
            raise UserError(
                "no run lies here that could be resumed",
                where=str(folder),
                fix="Start it without --resume, or name the folder that its run folder lies in with --out",
            )
        make_folder(folder)
        require_no_links(folder)
        with locked(folder):
            if resume:
                begin = find_resume_point(folder, job, base_dir, from_step=from_step, accept=accept_changes)
            elif (folder / JOB_FILE).exists() or anything_saved(folder):
                raise UserError(
                    "this folder already holds a run",
                    where=str(folder),
                    fix="Continue it with --resume, or give the job another name",
                )
            else:
                begin = ResumePoint(job=job)
            code = _train_in(folder, begin, base_dir, limits, crew)
            leave_page(folder)
    except (UserError, OSError) as e:
        code, crew.said = FAILED, without_secrets(str(e))
        if isinstance(e, OSError):
            crew.said = f"{e.filename or job_path}: {e.strerror}. Choose a place you can write to with --out"
        print(f"wanlora: {crew.said}", file=sys.stderr)
    if crew.waiting is not None and code != DONE:
        from engine.parallel.refusals import refuse

        refuse(crew.waiting, code, crew.said)
    return code


def _train_in(folder: Path, begin: ResumePoint, base_dir: Path, limits: Limits, crew: "Crew") -> int:
    """One attempt, whose last event says how it ended."""
    code = FAILED
    with Console() as console:
        log = EventLog(folder, listener=console.show)
        try:
            if log.damaged:
                text = f"{log.damaged} lines of {log.path.name} are damaged and were passed over; is the disk failing?"
                log.emit("log", level="warning", text=text)
            code = _attempt(folder, begin, base_dir, log, limits, crew)
        except UserError as e:
            crew.said = without_secrets(str(e))
            log.emit(
                "failed",
                cause=without_secrets(sentences(f"{e.where}: {e.what}" if e.where else e.what)),
                next=without_secrets(sentences(e.fix)),
                user=True,
            )
        except Exception as e:
            print(without_secrets(traceback.format_exc()), file=sys.stderr)
            kept = ". The last checkpoint can be resumed" if anything_saved(folder) else ""
            crew.said = without_secrets(f"{type(e).__name__}: {e}")
            log.emit(
                "failed",
                cause=crew.said,
                next=f"This is a bug in wanlora; the log holds the details{kept}",
                user=False,
            )
        finally:
            if crew.team is not None:
                crew.team.end(code)
            if not log.flush():
                print(
                    f"wanlora: the disk is full: the last {log.waiting} events could not be written to {log.path}",
                    file=sys.stderr,
                )
            log.close()
    return code


def _attempt(folder: Path, begin: ResumePoint, base_dir: Path, log: EventLog, limits: Limits, crew: "Crew") -> int:
    rank = Rank.of()
    control = Control(folder, tell=log.finding)
    control.listen()
    here = left(begin.job, limits.gpus)
    facts = facts_of_all = _checked(folder, begin, here, base_dir, log)
    if limits.device is None:
        facts = own_gpu(rank, here, facts)
        use_gpus(here, facts)
        wake_card()

    _import_all()
    import torch

    from engine.memory.out_of_memory import open_device_with_room
    from engine.system.device import memory_errors, require_gpu

    control.open()
    try:
        control.raise_if_stop_requested()
        with memory_errors():
            device = open_device_with_room(limits.device, vram=limits.vram, sharers=rank.on_host)
            if limits.device is None and not facts.tiny and facts.machine is not None:
                require_gpu(device, facts.machine)  # before anything is downloaded or packed
            from engine.memory.planning import Running
            from engine.parallel.orders import Prepare
            from engine.parallel.team import Team
            from engine.training.placement import settle
            from engine.training.prepare import prepare, require_one_kind
            from engine.training.trainer import train

            if device.type == "cpu":
                one_thread()
            if rank.world > 1:
                log.phase("loading", 0, 1, f"waiting for {rank.world} processes")
                crew.waiting = None
                crew.team = Team(rank, parts_of(begin.job, rank.world), device, partial(_end_at_loss, folder, log))
                control.polled = crew.team.signs.give
                require_one_kind(crew.team, device)
            workers = limits.workers if limits.workers is not None else default_workers(rank)

            def tell_others(running: Running) -> None:
                if crew.team is not None:
                    crew.team.order(Prepare(begin, facts_of_all, folder, running, limits.vram))

            run = prepare(
                begin,
                facts,
                folder,
                log,
                control,
                device=device,
                workers=workers,
                vram=limits.vram,
                team=crew.team,
                planned=tell_others,
            )
            with run.loader:
                if crew.team is not None:
                    log.phase("loading", 0, 1, f"waiting for {rank.world} processes to load")
                    crew.team.ready(log)
                    settle(run, crew.team)
                return DONE if train(run) else RESUMABLE
    except StopRequested as e:
        crew.said = f"{e} while loading; nothing was lost"
        log.emit(
            "stopped",
            step=begin.step,
            path=str(begin.checkpoint.relative_to(folder)) if begin.checkpoint else "",
            why=crew.said,
        )
        return RESUMABLE
    except torch.OutOfMemoryError as e:
        raise UserError(
            f"the GPU ran out of memory outside a training step: {str(e).splitlines()[0]}",
            where="job.gpus",
            fix=LESS_MEMORY,
        ) from e


def _follow(job_path: Path, rank: Rank, limits: Limits) -> int:
    """Work as a rank behind the first, which says what is wrong with a job."""
    try:
        job = load_job(job_path)
        parts_of(job, rank.world)
        here = left(job, limits.gpus)
    except UserError:
        time.sleep(SAID_SECONDS)
        return FAILED
    try:
        fault_injection.at("rank.begin", 0)
        own = _own_machine(job_path, here, rank, limits)
        if limits.device is None:
            use_gpus(here, own)
            wake_card()
        with uncollected():
            import_diffusers()
            import engine.follow  # noqa: F401
        from engine.follow import follow
        from engine.memory.out_of_memory import open_device_with_room

        device = open_device_with_room(limits.device, vram=limits.vram, sharers=rank.on_host)
    except (UserError, OSError) as e:  # of this rank's own GPU, too, which the first does not look at
        from engine.parallel.refusals import refuse_own

        refuse_own(rank, FAILED, without_secrets(str(e)))
        return FAILED
    if device.type == "cpu":
        one_thread()
    workers = limits.workers if limits.workers is not None else default_workers(rank)
    narrowed = partial(as_here, rank, here, own) if limits.device is None else lambda facts: facts
    return follow(job, rank, device, workers=workers, narrowed=narrowed)


def _own_machine(job_path: Path, job: Job, rank: Rank, limits: Limits) -> Facts:
    """The machine as this rank has it. Raises UserError where the job names too few GPUs."""
    machine = Facts(base=job_path.resolve().parent, machine=read_machine(job_path.resolve()))
    return own_gpu(rank, job, machine) if limits.device is None else machine


def _end_at_loss(folder: Path, log: EventLog, loss: "Loss") -> None:
    """Another rank has died, whatever this one is doing: say so, and end as a kill would, which loses nothing."""
    with log.lock:
        if log.ended:
            return
        kept = "The last checkpoint can be resumed" if anything_saved(folder) else "Start it again"
        cause = without_secrets(sentences(loss.cause))
        log.emit("failed", cause=cause, next=without_secrets(sentences(loss.fix or kept)), user=loss.user)
        os._exit(FAILED)


def one_thread() -> None:
    """Only toys train on a CPU: too small to share out, and threads that wait for each other on busy cores make such
    steps thirty times as long. Nor do the sums then depend on the number of cores."""
    import torch

    torch.set_num_threads(1)


def _import_all() -> None:
    """What training takes of Python's packages. Only now: a job that is refused is refused in a second."""
    with uncollected():
        import torch  # noqa: F401

        import_diffusers()
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        import engine.training.trainer  # noqa: F401

    transformers_logging.disable_progress_bar()  # our own phases show the progress
    diffusers_logging.disable_progress_bar()


def _checked(folder: Path, begin: ResumePoint, here: Job, base_dir: Path, log: EventLog) -> Facts:
    """The facts of a job that has no errors, which the run folder holds from now on. `here`: it with the GPUs of this
    attempt. Raises UserError."""
    log.phase("loading", 0, 1, "checking the job")
    facts = gather(begin.job, base_dir, out=folder.parent, accepted=begin.check)
    findings = [*notices(Rank.of(), begin.job, here, facts), *check_job(here, facts)]
    for finding in findings:
        log.finding(finding)
    if errors := [f for f in findings if f.severity == "error"]:
        listed = "; ".join(f"{f.field}: {f.message}" for f in errors)
        raise UserError(
            f"{len(errors)} error{'s' if len(errors) > 1 else ''} in the job: {listed}",
            fix=errors[0].fix if len(errors) == 1 else "Fix them, as wanlora check says for each, then start again",
        )
    if not (folder / JOB_FILE).exists():
        save_job(absolute_paths(begin.job, base_dir), folder / JOB_FILE)
        fsync(folder)
    return facts


def leave_page(folder: Path) -> None:
    """Write what is left to read of the run, as far as it has come. It is no part of the training: whatever is in its
    way is said, and left."""
    try:
        if (folder / JOB_FILE).exists():
            write_page(folder)
    except Exception as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
        said = f"the page of the run was not written: {why}. Write it with: {to_type('report', folder)}"
        print(f"wanlora: {without_secrets(said)}", file=sys.stderr)


def use_gpus(job: Job, facts: Facts) -> None:
    """From now on CUDA sees the job's GPUs alone, the first of them first. To be called before anything asks CUDA what
    there is, which some packages do while they are imported; afterwards it has no effect."""
    gpus = sorted(used_gpus(job, facts), key=lambda gpu: job.job.gpus.index(gpu.index))
    if gpus:
        os.environ.update(shown_to_cuda({gpu.index: gpu.uuid for gpu in gpus}))


def holds_a_run(folder: Path) -> bool:
    """Whether an attempt was made here. One that ended before its job was accepted has left no more than its events."""
    return any((folder / name).exists() for name in (JOB_FILE, EVENTS_FILE)) or anything_saved(folder)


def anything_saved(folder: Path) -> bool:
    """Whether checkpoints lie here, also unfinished ones."""
    return any((folder / "checkpoints").glob("step_*"))


def default_workers(rank: Rank) -> int:
    """Half the cores over the host's ranks, at most 4 each: decoding must not starve the process that feeds the GPU."""
    return max(1, min(4, cores() // 2 // rank.on_host))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: one trainer at a time. Raises UserError when another has it."""
    with open_own(folder / LOCK_FILE) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another trainer is running in this folder", where=str(folder), fix="Wait for it, or stop it first"
            ) from None
        yield
