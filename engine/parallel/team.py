"""The ranks of a run as one of them sees them: what they tell each other, in the order of the ranks.

The first rank leads: it gives orders, and between two of them it alone works (events, files, previews). All others wait
for the next order. What is told goes through gloo, gradients through NCCL where they lie on GPUs.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from engine.parallel.interface import choose_interface
from engine.parallel.lost_ranks import Watch
from engine.parallel.orders import End, Order, Prepare
from engine.parallel.parts import Part, Rank
from engine.parallel.quiet import take_warnings, warn
from engine.parallel.refusals import JOIN, JOIN_FIRST, await_word, let_begin
from engine.parallel.signs import HANGS_SECONDS, Signs
from engine.runfolder.event_log import EventLog
from engine.system.host_copy import Copied
from presets.errors import UserError

# Between two orders the others wait as long as previews take. Who dies is noticed at once all the same.
PATIENCE = timedelta(days=30)
CAUSE_SECONDS = 10.0  # for the watch to see who has died, when a connection has broken
HALT = "wanlora/halt"  # in the store: an attempt halts once
BOOT = Path("/proc/sys/kernel/random/boot_id")
T = TypeVar("T")


class RankFailed(Exception):
    """Another rank has met a bug; its own text."""


@dataclass(frozen=True)
class Loss:
    """A rank that ended before its time."""

    cause: str
    fix: str  # "" for a bug
    user: bool  # whether it is for the user to mend


class Team:
    """All ranks of a run. Made by all of them at the same time."""

    def __init__(self, rank: Rank, parts: Sequence[Part], device: torch.device, lost: Callable[[Loss], None]) -> None:
        """`lost` is called in a thread of its own when a rank of this host has died, or any hangs; it should end this
        process. Raises UserError when the ranks do not find each other or one of them refuses, and Refused on those
        behind the first where it begins no attempt."""
        self.rank, self.parts, self.part = rank, list(parts), parts[rank.number]
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        join = JOIN_FIRST if self.leads else JOIN
        try:
            self._store, number, world = next(dist.rendezvous("env://", timeout=join))
            if self.leads:
                let_begin(self._store, rank, join)
            else:
                await_word(self._store, rank)
            if rank.several_hosts:
                choose_interface(self._store, rank, os.environ["MASTER_ADDR"])
            dist.init_process_group(backend, store=self._store, rank=number, world_size=world, timeout=join)
        except UserError:  # which is a ValueError: what a rank behind the first has refused
            raise
        except (RuntimeError, ValueError) as e:
            raise UserError(
                f"the {rank.world} processes of this run did not find each other: {str(e).splitlines()[0]}",
                where=f"rank {rank.number}",
                fix="Start all of them with one torchrun command, or unset WORLD_SIZE to train with one process",
            ) from e
        first = f"the first host ({os.environ['MASTER_ADDR']})" if rank.several_hosts else ""
        self._lost, self._watch = lost, Watch({}, self._on_lost)
        self.signs = Signs(self._store, rank.number, rank.world, self._on_hung, limit=HANGS_SECONDS, kept_by=first)
        self._all = dist.new_group(backend=backend, timeout=PATIENCE)
        groups = {
            ranks: dist.new_group(list(ranks), backend=backend, timeout=PATIENCE)
            for ranks in dict.fromkeys(part.ranks for part in parts)
        }
        self._sharing = groups[self.part.ranks]  # every rank has to make every group
        # torch's own limit names nobody: it comes behind that of the signs
        limit = timedelta(seconds=1.5 * HANGS_SECONDS)
        clips = [part.clip for part in parts if part.each > 1]
        within_steps = {
            ranks: dist.new_group(list(ranks), backend=backend, timeout=limit)
            for ranks in dict.fromkeys([*clips, *(part.ranks for part in parts if part.sharing > 1)])
        }
        self._gradients = within_steps.get(self.part.ranks)
        # those that share clips; None where a rank has its own
        self.clip_group = within_steps[self.part.clip] if self.part.each > 1 else None
        self._working = False  # an order is being carried out
        self.here = [rank.number]
        here = self.exchange((this_host(), os.getpid()))
        self.here = [n for n, (host, _) in enumerate(here) if host == here[rank.number][0]]  # the ranks of this host
        pids = {n: here[n][1] for n in self.here if n != rank.number}
        self._watch.close()
        self._watch = Watch(pids, self._on_lost)

    @property
    def leads(self) -> bool:
        return self.rank.number == 0

    def exchange(self, mine: T) -> list[T]:
        """What each rank says, in their order. All ranks call it."""
        return self._gathered(mine, self._all)

    def exchange_sharing(self, mine: T) -> list[T]:
        """The same among those that share a step."""
        return self._gathered(mine, self._sharing)

    def exchange_clip(self, mine: T) -> list[T]:
        """The same among those that share a clip."""
        return self._gathered(mine, self.clip_group)

    def gather(self, mine: torch.Tensor) -> list[torch.Tensor]:
        """The tensor of each rank that shares a step: all of one shape, type and kind of device."""
        out = [torch.empty_like(mine) for _ in self.part.ranks]
        self.ask(lambda: dist.all_gather(out, mine, group=self._gradients))
        return out

    def hand(self, tensor: torch.Tensor, place: int) -> None:
        """Fill it on all that share a clip with what the one at a place among them has in it."""
        source = self.part.clip[place]
        self.ask(lambda: dist.broadcast(tensor, src=source, group=self.clip_group))

    def send(self, copied: Copied) -> None:
        """To the first rank, which waits for it. It is there: the device has been waited for."""
        self.ask(lambda: dist.send_object_list([copied.outline, copied.flat.numel()], dst=0, group=self._all))
        self.ask(lambda: dist.send(copied.flat, dst=0, group=self._all))

    def receive(self, rank: int, room: Callable[[int], torch.Tensor]) -> Copied:
        """What a rank sends to the first, which calls this; `room` gives it so many bytes."""
        told: list[Any] = [None, None]
        self.ask(lambda: dist.recv_object_list(told, src=rank, group=self._all))
        outline, size = told
        try:
            flat = room(size)
        except UserError as e:  # that rank sends, and would wait for this one while the next order is given
            raise RankFailed(f"rank {self.rank.number}, for what rank {rank} has learnt: {e}") from e
        self.ask(lambda: dist.recv(flat, src=rank, group=self._all))
        return Copied(outline, flat)

    @contextmanager
    def at_work(self, order: Order) -> Iterator[None]:
        """Give an order and carry it out with the others, inside. An error that is the user's to mend is all ranks',
        and the next order may be given; after any other nobody knows where the others are, and they end by this
        process's end."""
        self.order(order)
        self._working = True
        try:
            yield
        except UserError:
            self._working = False
            raise
        self._working = False

    def order(self, order: Order) -> None:
        """Give an order to all others. From Prepare on they work until all are `ready`."""
        self._working = self._working or isinstance(order, Prepare)
        self.ask(lambda: dist.broadcast_object_list([order], src=0, group=self._all))

    def next_order(self) -> Order:
        """Wait for it."""
        told: list[Any] = [None]
        self.ask(lambda: dist.broadcast_object_list(told, src=0, group=self._all))
        if isinstance(told[0], End):
            self._close()  # from now on ranks end as they should
            dist.destroy_process_group()
        order: Order = told[0]
        return order

    def end(self, code: int) -> None:
        """Send the others home: they exit with `code`."""
        if self._working:  # who knows what the others wait for: they end by this process's end
            with suppress(RuntimeError):
                self.confess(Loss(f"rank 0 of {self.rank.world} has ended the attempt", "", False))
            self._close()
            return
        self._watch.close()
        with suppress(RuntimeError):  # who has ended already need not be told
            self.order(End(code))
        self._close()
        dist.destroy_process_group()

    def _close(self) -> None:
        self._watch.close()
        self.signs.close()

    def ready(self, log: EventLog) -> None:
        """All ranks have loaded; waits for them. The first logs what the others warn of."""
        for rank, warnings in enumerate(self.exchange(take_warnings(log))):
            if self.leads:
                warn(log, rank, warnings)
        self._working = False

    def halt(self) -> None:
        """Have all that train apart end after the steps that they are at: for a stop, or an error."""
        with suppress(RuntimeError):  # the store has gone with torchrun: the others go on to where all meet
            self._store.set(HALT, "1")

    def halted(self) -> bool:
        """Whether a rank has asked for that; those that share a step hear of it at the same step. All of them call
        it."""
        heard = self.heard_halt()
        return any(self.exchange_sharing(heard)) if self.part.sharing > 1 else heard

    def heard_halt(self) -> bool:
        """Whether a rank has asked for that, as far as this one knows by now."""
        with suppress(RuntimeError):
            return bool(self._store.check([HALT]))
        return False

    def confess(self, loss: Loss) -> None:
        """Leave word of why this rank is about to end: it is found once it has ended."""
        self._store.set(_key(self.rank.number), "\0".join([loss.cause, loss.fix, "user" if loss.user else ""]))

    def give_up(self, loss: Loss) -> None:
        """Have this rank end where it is, and the others with its cause."""
        with suppress(RuntimeError):  # the store may be what is lost
            self.confess(loss)
        self._lost(loss)

    def _on_lost(self, rank: int) -> None:
        """In the thread of the watch."""
        killed = f"rank {rank} of {self.rank.world} was killed or has crashed"
        self._lost(self._confessed(rank) or Loss(killed, "Resume from the last checkpoint", False))

    def _confessed(self, rank: int) -> Loss | None:
        """What a rank has left word of."""
        try:
            if self._store.check([_key(rank)]):
                cause, fix, user = self._store.get(_key(rank)).decode().split("\0")
                named = cause if cause.startswith("rank ") else f"rank {rank} of {self.rank.world}: {cause}"
                return Loss(named, fix, bool(user))
        except RuntimeError as e:  # the store was in the process that has died
            print(f"rank {self.rank.number}: {e}", file=sys.stderr)
        return None

    def _on_hung(self, cause: str) -> None:
        """In the thread of the signs. Word is left for those that wait for this rank."""
        loss = Loss(cause, "Resume from the last checkpoint; if it comes again, see what that GPU or disk does", False)
        self.give_up(loss)

    def _gathered(self, mine: T, group: Any) -> list[T]:
        told: list[Any] = [None] * dist.get_world_size(group)
        self.ask(lambda: dist.all_gather_object(told, mine, group=group))
        return told

    def ask(self, collective: Callable[[], object]) -> None:
        """Run a collective, and find out who has died where it breaks."""
        try:
            with self.signs.waiting():
                collective()
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # RuntimeErrors too: this rank's own, and nobody died
            raise
        except RuntimeError as e:
            # most likely a rank has died: the watch is about to say which, and to end this process
            print(f"rank {self.rank.number}: {e}", file=sys.stderr)
            self._watch.wait(CAUSE_SECONDS)
            if self.rank.several_hosts:  # no watch sees those
                self.give_up(self._lost_elsewhere(str(e)))
            raise

    def _lost_elsewhere(self, said: str) -> Loss:
        """Why the way to a rank of another host has broken."""
        for rank in range(self.rank.world):
            if rank not in self.here and (found := self._confessed(rank)):
                return found
        cause = f"the way to the processes of another host has broken: {said.splitlines()[0]}"
        return Loss(cause, "See what that host and its processes say, then resume from the last checkpoint", False)


def this_host() -> tuple[str, str, str]:
    """Where process numbers mean what they mean here. Hosts and containers may have one name: each also has a kernel's
    boot and a namespace of its own."""
    boot = namespace = ""
    with suppress(OSError):
        boot = BOOT.read_text("utf-8").strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname(), boot, namespace


def _key(rank: int) -> str:
    return f"wanlora/ended/{rank}"
