"""Whatever users ask and whatever trainers do, in whatever order: the queue keeps its rules."""

import copy
from collections.abc import Callable, Container
from itertools import pairwise

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.processes.proc import ProcessId
from daemon.queue import restarts
from daemon.queue.entry import AttemptResult, Changed, Entry, Instruction, Launch, Removed
from daemon.queue.estimates import refresh
from daemon.queue.job_queue import Queue
from daemon.queue.list_requests import ON_HOLD
from daemon.queue.places import may_start
from daemon.wire.protocol import ENDED_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord, PlannedTime
from presets.errors import UserError

PICK = st.integers(0, 40)  # which of the jobs that there are
GPUS = st.sampled_from([[0], [0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
NAMES = st.sampled_from(["orbit", "style", "1", "2", "last"])


def saved(entry: Entry) -> bytes:
    """As the job table holds it, but for what a new daemon sets anew."""
    return msgspec.json.encode(msgspec.structs.replace(entry, due=0.0, due_signal="terminate"))


def loaded(queue: Queue) -> Queue:
    """The queue of a daemon that finds this one's job table."""
    return Queue(
        [msgspec.json.decode(msgspec.json.encode(e), type=Entry) for e in queue.entries.values()], paused=queue.paused
    )


def turn(entry: Entry) -> tuple[bool, int, int]:
    return not entry.record.first, -entry.record.priority, entry.order


def share(one: Entry, other: Entry) -> bool:
    return not set(one.record.gpus).isdisjoint(other.record.gpus)


def startable(entry: Entry) -> bool:
    """It has its place in the line, though it may have to wait there."""
    return entry.record.state == "queued" and not entry.record.held and not entry.record.after and not entry.paused


def waits(entry: Entry) -> bool:
    """For more than its turn, and keeps its GPUs from those behind it."""
    return bool(entry.restart_due or entry.busy)


class Machine(RuleBasedStateMachine):
    """The queue beside what a spectator knows: which jobs there are, who must come after whom, who was done once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.now, self.last_id = Queue([]), 1000.0, 0
        self.there: set[int] = set()
        self.must: dict[int, set[int]] = {}  # job -> those that it must come after
        self.done: set[int] = set()

    # --- every act ---------------------------------------------------------------------------------------------

    def act(
        self,
        does: Callable[[Queue], list[Instruction]],
        *,
        resumes: Container[int] = (),
        wakes: bool = False,
    ) -> bool:
        """Do it here, and in the queue of a daemon that has just read the table; look at what came of it. Whether it
        was taken. `resumes`: what may come back; `wakes`: what is paused may go on, too."""
        twin = loaded(self.queue)
        before = {job: saved(e) for job, e in self.queue.entries.items()}
        states = {job: e.record.state for job, e in self.queue.entries.items()}
        paused = {job for job, e in self.queue.entries.items() if e.paused}
        try:
            said = does(self.queue)
        except UserError as e:
            assert e.what
            assert {job: saved(e) for job, e in self.queue.entries.items()} == before  # refused, and nothing changed
            return False
        assert does(twin) == said and twin.entries == self.queue.entries and twin.paused == self.queue.paused
        told = {i.job for i in said if isinstance(i, Changed)}
        assert {j for j, e in self.queue.entries.items() if before.get(j) != saved(e)} <= told  # all is saved, and told
        assert before.keys() - self.queue.entries.keys() == {i.job for i in said if isinstance(i, Removed)}
        for job, entry in self.queue.entries.items():
            if states.get(job) in ENDED_STATES and entry.record.state not in ENDED_STATES:
                assert job in resumes
            assert entry.paused or job not in paused or wakes or job in resumes or entry.record.state in ENDED_STATES
            if entry.record.state == "done":
                self.done.add(job)
        for job in [i.job for i in said if isinstance(i, Launch)]:
            self.look_at_start(job)
        return True

    def look_at_start(self, job: int) -> None:
        """It was its turn."""
        entry = self.queue.entries[job]
        assert entry.record.state == "starting" and not entry.hold and not entry.paused and not waits(entry)
        assert self.must[job] <= self.done
        ahead = [e for e in self.queue.queued() if startable(e) and share(e, entry) and turn(e) < turn(entry)]
        assert not ahead, "overtaken on a GPU that it waits for"
        backing_off = [e for e in self.queue.queued() if startable(e) and share(e, entry) and e.restart_due]
        assert entry.record.first or not any(e.record.first for e in backing_off), "took a GPU from a back-off"

    def job(self, pick: int) -> int:
        """Any; every other time one of those for which something out of the ordinary has happened."""
        jobs = sorted(self.queue.entries)
        special = [j for j in jobs if (e := self.queue.entries[j]).interrupted or e.paused or waits(e)]
        return (special or jobs)[pick // 2 % len(special or jobs)] if pick % 2 else jobs[pick // 2 % len(jobs)]

    def waiting(self, pick: int) -> int:
        """One that is queued, if there is one."""
        return self.job_in(pick, "queued") or self.job(pick)

    def job_in(self, pick: int, *states: str) -> int | None:
        jobs = [j for j, e in self.queue.entries.items() if e.record.state in states]
        return jobs[pick % len(jobs)] if jobs else None

    # --- what users ask ----------------------------------------------------------------------------------------

    @initialize(each=st.lists(GPUS, min_size=2, max_size=6))
    def begin(self, each: list[list[int]]) -> None:
        for job, gpus in enumerate(each, 1):
            self.submit(gpus, 0, False, [], f"job{job}")
        while self.job_in(0, "starting"):
            self.launch(0)

    @rule(gpus=GPUS, priority=st.integers(-1, 2), hold=st.booleans(), after=st.lists(PICK, max_size=2), name=NAMES)
    def submit(self, gpus: list[int], priority: int, hold: bool, after: list[int], name: str) -> None:
        job = self.last_id + 1
        before = [f"#{self.job(pick)}" for pick in after] if self.queue.entries else []
        record = JobRecord(id=job, name=name, job_path="/j.toml", out="/runs", gpus=gpus, state="queued", steps=10)
        record.priority, record.after = priority, self.queue.predecessors(before)
        record.held = self.queue.why_held(record, ON_HOLD if hold else "")
        foretold = self.queue.place_for(record)
        must = set(record.after)
        self.must[job] = must

        def does(queue: Queue) -> list[Instruction]:
            return queue.submit(copy.deepcopy(record), self.now, hold=hold, planned=PlannedTime(1.0))

        if self.act(does):
            self.last_id, self.there = job, self.there | {job}
            assert self.queue.entries[job].record.position == foretold
            assert (self.queue.entries[job].record.held != "") == (record.held != "")

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, priority=st.integers(-2, 2))
    def set_priority(self, pick: int, priority: int) -> None:
        job = self.job(pick)
        assert self.act(lambda queue: queue.set_priority(job, priority, self.now))

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, place=st.sampled_from(["first", "last", "before", "after"]), beside=PICK)
    def move(self, pick: int, place: str, beside: int) -> None:
        job, other = self.waiting(pick), self.waiting(beside)
        line = [e.record.id for e in self.queue.queued()]
        if self.act(lambda queue: queue.move(job, place, self.now, other=other)):
            rest = [j for j in line if j != job]
            at = {"first": 0, "last": len(rest)}.get(place)
            if at is None:
                at = rest.index(other) + (place == "after")
            wanted = [*rest[:at], job, *rest[at:]]
            now = [e.record.id for e in sorted((self.queue.entries[j] for j in line), key=turn)]
            assert now == wanted

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK)
    def hold(self, pick: int) -> None:
        job = self.waiting(pick)
        if self.act(lambda queue: queue.hold(job, self.now)):
            assert self.queue.entries[job].record.held and self.queue.entries[job].record.state == "queued"

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, anyway=st.booleans())
    def release(self, pick: int, anyway: bool) -> None:
        job, must = self.job(pick), self.must[self.job(pick)]
        lost = {
            j
            for j in must
            if anyway or j not in self.queue.entries or self.queue.entries[j].record.state in RESUMABLE_STATES
        }
        self.must[job] = must - lost
        if self.act(lambda queue: queue.release(job, self.now, anyway=anyway)):
            assert not self.queue.entries[job].record.held
        else:
            self.must[job] = must

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK)
    def remove(self, pick: int) -> None:
        job = self.job(pick)
        waiting = [j for j, e in self.queue.entries.items() if job in e.record.after and e.record.state == "queued"]
        was_done = self.queue.entries[job].record.state == "done"
        before = {j: self.must[j] for j in self.must}
        for other, entry in self.queue.entries.items():  # one that is resumed later has nothing to come after
            if entry.record.state != "queued":
                self.must[other] = self.must[other] - {job}
        if self.act(lambda queue: queue.remove(job, self.now)):
            self.there -= {job}
            assert was_done or all(self.queue.entries[j].record.held for j in waiting if j != job)
        else:
            self.must = before

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, name=NAMES)
    def rename(self, pick: int, name: str) -> None:
        job = self.job(pick)
        entry = self.queue.entries[job]
        begun, folder = entry.record.attempt > 0 or entry.resume, entry.record.run_dir
        if self.act(lambda queue: queue.rename(job, name)):
            assert entry.record.name == name and (not begun or entry.record.run_dir == folder)

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, verb=st.sampled_from(["stop", "cancel"]))
    def end(self, pick: int, verb: str) -> None:
        job = self.job(pick)
        self.act(lambda queue: getattr(queue, verb)(job, self.now))

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, hold=st.booleans())
    def resume(self, pick: int, hold: bool) -> None:
        job, must = self.job(pick), self.must[self.job(pick)]
        # a hold that came of a removed one is over when its user wants it to go on
        self.must[job] = {j for j in must if j in self.queue.entries}
        first = self.queue.entries[job].interrupted
        if self.act(lambda queue: queue.resume(job, self.now, hold=hold, further=True), resumes={job}):
            entry = self.queue.entries[job]
            assert not waits(entry) and not entry.paused and not entry.interrupted
            assert not hold or entry.record.held
            assert not first or entry.record.first
        else:
            self.must[job] = must

    @precondition(lambda self: self.queue.paused or any(e.interrupted for e in self.queue.entries.values()))
    @rule()
    def resume_all(self) -> None:
        broken = {job for job, e in self.queue.entries.items() if e.interrupted}
        folders = {e.record.run_dir for e in self.queue.entries.values() if e.record.state not in ENDED_STATES}
        assert self.act(lambda queue: restarts.resume_all(queue, self.now), resumes=broken, wakes=True)
        assert not self.queue.paused
        for job in broken:
            entry = self.queue.entries[job]
            if entry.interrupted:  # the folder of its run has been taken by another job
                assert [e for e in self.queue.entries.values() if e is not entry and self.same_folder(e, entry)]
            else:
                assert entry.record.first and entry.record.run_dir not in folders

    @staticmethod
    def same_folder(one: Entry, other: Entry) -> bool:
        return one.record.run_dir == other.record.run_dir and one.record.state not in ENDED_STATES

    @precondition(lambda self: self.queue.entries)
    @rule(pick=PICK, after=st.lists(PICK, min_size=1, max_size=3))
    def resubmit(self, pick: int, after: list[int]) -> None:
        """As `submit --resume --after` does with a job that is there."""
        job = self.job_in(pick, *ENDED_STATES)
        if job is None:
            return
        before = self.queue.predecessors([f"#{self.job(one)}" for one in after])

        def does(queue: Queue) -> list[Instruction]:
            queue.require_resumable(queue.entries[job], further=True)
            queue.come_after(queue.entries[job], before)
            return queue.resume(job, self.now, further=True)

        must = self.must[job]
        self.must[job] = set(before)
        if not self.act(does, resumes={job}):
            self.must[job] = must

    # --- what happens to trainers ------------------------------------------------------------------------------

    @precondition(lambda self: self.job_in(0, "starting"))
    @rule(pick=PICK)
    def launch(self, pick: int) -> None:
        job = self.job_in(pick, "starting")
        if job is not None and self.queue.entries[job].trainer is None:
            trainer = ProcessId(100 + job, 1, "boot")
            self.act(lambda queue: queue.launched(job, trainer, self.now, first_seq=0, oom_kills=0))
            self.act(lambda queue: queue.started(job))

    @precondition(lambda self: self.job_in(0, *RUNNING_STATES))
    @rule(pick=PICK, state=st.sampled_from(["done", "stopped", "failed"]))
    def over(self, pick: int, state: str) -> None:
        job = self.job_in(pick, *sorted(RUNNING_STATES))
        if job is not None:
            self.act(lambda queue: queue.ended(job, AttemptResult(state, "because"), self.now))

    @precondition(lambda self: self.job_in(0, "running"))
    @rule(pick=PICK, delay=st.sampled_from([5.0, 20.0, 600.0]), saved=st.booleans())
    def back_off(self, pick: int, delay: float, saved: bool) -> None:
        job = self.job_in(pick, "running")
        if job is not None and not self.queue.entries[job].ending:
            result = AttemptResult("failed", "killed. Resume ...", "killed.", may_pass=True)
            self.act(lambda queue: restarts.back_off(queue, job, result, self.now, delay=delay, most=3, saved=saved))
            entry = self.queue.entries[job]
            assert (entry.record.state, entry.record.first, entry.resume) == ("queued", True, True)
            line = [e for e in self.queue.queued() if share(e, entry) and e.record.priority <= entry.record.priority]
            assert line[0] is entry

    @precondition(lambda self: self.job_in(0, "starting", "queued"))
    @rule(pick=PICK, why=st.sampled_from(["bob", "carol"]))
    def others_use_its_gpus(self, pick: int, why: str) -> None:
        starting = [
            j
            for j, e in self.queue.entries.items()
            if (e.record.state == "starting" and e.trainer is None) or e.record.state == "queued"
        ]
        if starting:
            job = starting[pick % len(starting)]
            entry = self.queue.entries[job]
            was, before = entry.record.state, turn(entry)
            self.act(lambda queue: restarts.cannot_start(queue, job, why, self.now))
            assert entry.busy == why if was == "starting" else entry.busy in ("", why)
            assert turn(entry) == before and entry.record.state == "queued"

    @precondition(lambda self: self.job_in(0, "queued"))
    @rule(pick=PICK)
    def its_gpus_are_free(self, pick: int) -> None:
        job = self.job_in(pick, "queued")
        if job is not None:
            self.act(lambda queue: restarts.can_start(queue, job, self.now))
            assert not self.queue.entries[job].busy

    @rule(seconds=st.sampled_from([0.1, 10.0, 1000.0]), pick=PICK)
    def time_passes(self, seconds: float, pick: int) -> None:
        self.now += seconds
        job = self.job_in(pick, *sorted(RUNNING_STATES))
        if job is not None:
            self.act(lambda queue: queue.said_last_word(job, self.now))
        self.act(lambda queue: queue.tick(self.now, {e.record.id: self.now - 5 for e in queue.running()}))
        assert all(e.restart_due == 0 or e.restart_due > self.now for e in self.queue.queued())

    @rule()
    def crash(self) -> None:
        """A new daemon finds the table, and the trainers that were launched."""
        self.queue = loaded(self.queue)
        for entry in self.queue.running():
            job = entry.record.id
            if entry.trainer:
                self.act(lambda queue, job=job: queue.adopted(job, self.now))
            elif entry.record.state in RUNNING_STATES:
                self.act(lambda queue, job=job: queue.never_launched(job, self.now))
        states = [e.record.state for e in self.queue.entries.values()]
        self.act(lambda queue: queue.fill(self.now))
        assert [e.record.state for e in self.queue.entries.values()] == states  # it decides nothing else

    @rule(really=st.integers(0, 2), most=st.sampled_from([None, None, 1, 3]), over=PICK, gained=PICK)
    def reboot(self, really: int, most: int | None, over: int, gained: int) -> None:
        """The clock of intervals begins anew."""
        if really:
            return
        self.queue, self.now = loaded(self.queue), 10.0
        running = {job: e.ending for job, e in self.queue.entries.items() if e.record.state in RUNNING_STATES}
        running |= {job: "" for job, e in self.queue.entries.items() if e.restart_due}
        broken = {job for job, e in self.queue.entries.items() if e.interrupted} | set(running)
        paused = {job for job, e in self.queue.entries.items() if e.paused}
        ran = [job for job in running if not self.queue.entries[job].restart_due]
        finished = dict.fromkeys(ran[: over % 3], AttemptResult("done"))
        further = frozenset(list(running)[gained % 3 :])
        self.act(
            lambda queue: restarts.broken_off(queue, self.now, finished, most=most, gained=further),
            resumes=() if most is None else broken,
        )
        for job, ending in running.items():
            entry = self.queue.entries[job]
            if job in finished or ending:
                assert entry.record.state in ENDED_STATES and not entry.interrupted
            elif most is None:
                assert entry.record.state == "stopped" and entry.interrupted
            elif entry.restarts <= most:
                assert entry.record.first and entry.record.state in ("queued", "starting")
            else:
                assert entry.record.state == "stopped" and not entry.interrupted
        assert most is not None or not self.queue.running()
        assert {j for j in paused if self.queue.entries[j].record.state == "queued"} <= {
            j for j, e in self.queue.entries.items() if e.paused
        }

    # --- what is always so -------------------------------------------------------------------------------------

    @invariant()
    def no_gpu_is_held_twice(self) -> None:
        held = [gpu for e in self.queue.running() for gpu in e.record.gpus]
        assert len(held) == len(set(held))

    @invariant()
    def no_job_is_lost_or_doubled(self) -> None:
        assert set(self.queue.entries) == self.there
        assert all(job == e.record.id for job, e in self.queue.entries.items())
        assert len({e.order for e in self.queue.queued()}) == len(self.queue.queued())
        live = [e.record.run_dir for e in self.queue.entries.values() if e.record.state not in ENDED_STATES]
        assert len(live) == len(set(live))

    @invariant()
    def what_could_run_runs(self) -> None:
        line = [e for e in self.queue.queued() if startable(e)]
        for place, entry in enumerate(line):
            ahead = [*self.queue.running(), *line[:place]]
            assert waits(entry) or any(share(entry, other) for other in ahead)

    @invariant()
    def what_waits_for_more_than_its_turn_says_so(self) -> None:
        entries = self.queue.entries.values()
        assert (self.queue.paused != "") == any(e.paused for e in entries)
        for entry in entries:
            record = entry.record
            assert startable(entry) == (record.state == "queued" and may_start(entry))
            assert (record.waiting != "") == (waits(entry) or entry.paused)
            assert not record.waiting or (record.state == "queued" and record.outcome == record.waiting)
            assert (record.restart_at != 0) == (entry.restart_due != 0)
            assert entry.restart_due <= self.now + restarts.LONGEST_DELAY
            assert not entry.interrupted or record.state in ENDED_STATES
            assert not record.first or entry.trainer is None

    @invariant()
    def nobody_waits_for_what_is_over_without_a_word(self) -> None:
        for entry in self.queue.queued():
            before = [self.queue.entries[j].record.state for j in entry.record.after]
            assert "done" not in before and entry.record.id not in entry.record.after
            assert entry.record.held or not RESUMABLE_STATES.intersection(before)

    @invariant()
    def places_are_counted(self) -> None:
        line = self.queue.queued()
        assert [turn(e) for e in line] == sorted(map(turn, line))
        for place, entry in enumerate(line):
            ahead = [e for e in line[:place] if startable(e) and share(e, entry)]
            assert entry.record.position == 1 + len(ahead)
        for gpu in range(3):  # those of one GPU alone are 1, 2, 3 ... but for jobs of several GPUs between them
            alone = [e.record.position for e in line if startable(e) and e.record.gpus == [gpu]]
            assert all(one < other for one, other in pairwise(alone))
        over = [e.record for e in self.queue.entries.values() if e.record.state != "queued"]
        assert all((r.position, r.held) == (0, "") for r in over)

    @invariant()
    def what_is_saved_is_what_there_is(self) -> None:
        assert loaded(self.queue).entries == self.queue.entries

    @invariant()
    def estimates_can_be_made(self) -> None:
        twin = loaded(self.queue)
        refresh(twin, self.now)
        for entry in twin.entries.values():
            record = entry.record
            assert record.starts_at is None or record.state == "queued" or record.state in RUNNING_STATES
            if record.state == "queued" and (record.held or entry.paused or entry.busy):
                assert record.starts_at is None

    def teardown(self) -> None:
        """Let everything go, and everything runs: nobody starves."""
        for job in list(self.queue.entries):
            if self.queue.entries[job].record.state == "queued":
                self.must[job] = set()
                self.act(lambda queue, job=job: queue.release(job, self.now, anyway=True))
        self.resume_all()
        self.time_passes(1000.0, 0)
        for job in [e.record.id for e in self.queue.queued() if e.busy]:
            self.act(lambda queue, job=job: restarts.can_start(queue, job, self.now))
        wanted = {e.record.id for e in self.queue.entries.values() if e.record.state not in ENDED_STATES}
        for _ in wanted:
            if running := self.queue.running():
                job = running[0].record.id
                self.act(lambda queue, job=job: queue.ended(job, AttemptResult("done"), self.now))
        assert all(self.queue.entries[job].record.state in ENDED_STATES for job in wanted)


TestQueue = Machine.TestCase
TestQueue.settings = settings(max_examples=settings().max_examples * 2)
