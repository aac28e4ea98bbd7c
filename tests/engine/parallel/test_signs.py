"""A rank that hangs is found by those who wait for it, and named; one that works, or waits itself, is not."""

from engine.parallel.signs import Signs
from tests.helpers.waiting import until

LIMIT = 1800.0


class Store:
    """Of one process."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.said[key] = value

    def get(self, key: str) -> bytes:
        return self.said[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.said for key in keys)


class Ranks:
    """So many ranks, each with a list of what it was told. They look when the test has them look."""

    def __init__(
        self, world: int, *, limit: float = LIMIT, store: Store | None = None, kept_by: str = "the first host"
    ) -> None:
        self.now, self.told, self.stopped = 0.0, [list[str]() for _ in range(world)], set[int]()
        store = store or Store()
        self.signs = [
            Signs(store, n, world, self.told[n].append, limit=limit, kept_by=kept_by, clock=lambda: self.now)
            for n in range(world)
        ]

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.signs:
            one.close()

    def pass_by(self, seconds: float, looks: int = 4) -> None:
        for _ in range(looks):
            self.now += seconds / looks
            for n, one in (*enumerate(self.signs), *enumerate(self.signs)):  # all have published before the last look
                if n not in self.stopped:
                    one.look()


def test_who_waits_learns_which_rank_hangs_and_what_it_did_last():
    with Ranks(3) as ranks:
        ranks.signs[1].give("step 7")
        with ranks.signs[0].waiting(), ranks.signs[2].waiting():
            ranks.pass_by(1)
            ranks.pass_by(LIMIT - 1)
            assert ranks.told == [[], [], []]
            ranks.pass_by(2)
        said = "rank 1 of 3 hangs: it has done nothing for 30 minutes (step 7)"
        assert ranks.told[0][0] == ranks.told[2][0] == said
        assert ranks.told[1] == []


def test_a_rank_that_works_for_long_is_waited_for():
    with Ranks(2) as ranks, ranks.signs[0].waiting():
        for _ in range(5):
            ranks.signs[1].give()
            ranks.pass_by(0.9 * LIMIT)
        assert ranks.told == [[], []]


def test_ranks_that_were_suspended_together_do_not_hang():
    with Ranks(2) as ranks:
        ranks.signs[1].give("step 7")
        with ranks.signs[0].waiting():
            ranks.pass_by(1)
            ranks.pass_by(2 * LIMIT, looks=1)
            assert ranks.told == [[], []]
            ranks.pass_by(LIMIT + 1)
        assert "rank 1 of 2 hangs" in ranks.told[0][0]


def test_a_rank_that_never_began_is_named_too():
    with Ranks(1) as ranks:
        ranks.signs[0]._seen[1] = ("", 0.0)
        ranks.signs[0]._beats[1] = ("", 0.0)
        with ranks.signs[0].waiting():
            ranks.pass_by(1)
            ranks.pass_by(LIMIT + 1)
        never = "rank 1 of 2 hangs: its process has given no sign of life for 30 minutes (it never began)"
        assert never in ranks.told[0]


def test_ranks_that_all_wait_for_each_other_are_told_that():
    with Ranks(2) as ranks, ranks.signs[0].waiting(), ranks.signs[1].waiting():
        ranks.pass_by(1)
        ranks.pass_by(LIMIT + 1)
        assert all("the 2 processes have waited for each other for 30 minutes" in told[0] for told in ranks.told)


def test_the_thread_looks_by_itself():
    with Ranks(2, limit=0.1) as ranks, ranks.signs[0].waiting():

        def passed() -> list[str]:
            ranks.now += 0.02
            return ranks.told[0]

        until(passed)


def test_a_process_that_is_stopped_while_it_waits_is_named_by_all_others():
    """It has said that it waits, as they do: what it lacks is a sign of life."""
    with Ranks(3) as ranks, ranks.signs[0].waiting(), ranks.signs[1].waiting(), ranks.signs[2].waiting():
        ranks.pass_by(1)
        ranks.stopped.add(1)
        ranks.pass_by(1)
        ranks.pass_by(LIMIT + 1)
        said = "rank 1 of 3 hangs: its process has given no sign of life for 30 minutes (it waited for the others)"
        assert ranks.told[0][0] == ranks.told[2][0] == said


def test_a_process_that_is_stopped_is_named_where_a_gpu_waits_for_it_and_no_process_does():
    with Ranks(2) as ranks:
        for one in ranks.signs:
            one.give("step 7")
        ranks.pass_by(1)
        ranks.stopped.add(1)
        ranks.pass_by(1)
        ranks.pass_by(LIMIT - 10)
        assert ranks.told == [[], []]
        ranks.pass_by(20)
        assert "rank 1 of 2 hangs: its process has given no sign of life for 30 minutes (step 7)" in ranks.told[0][0]


def test_gpus_that_wait_for_each_other_are_told_with_the_step_of_each():
    with Ranks(2) as ranks:
        for n, one in enumerate(ranks.signs):
            one.give(f"step {7 + n}")
        ranks.pass_by(1)
        ranks.pass_by(LIMIT + 1)
        said = "the GPUs of 2 processes have waited for each other for 30 minutes, or one of them hangs"
        assert ranks.told[0][0] == ranks.told[1][0] == f"{said} (rank 0: step 7, rank 1: step 8)"


def test_ranks_that_load_for_long_do_not_hang():
    with Ranks(2) as ranks:
        ranks.pass_by(1)
        ranks.pass_by(2 * LIMIT, looks=8)
        assert ranks.told == [[], []]


class Gone(Store):
    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Connection reset by peer")


def test_a_store_that_is_gone_is_no_hang_while_the_ranks_get_on():
    with Ranks(2, store=Gone()) as ranks:
        for _ in range(5):
            with ranks.signs[0].waiting():
                ranks.pass_by(0.9 * LIMIT)
        assert ranks.told == [[], []]


def test_a_host_that_does_not_answer_is_named_by_who_waits():
    with Ranks(2, store=Gone()) as ranks, ranks.signs[0].waiting():
        ranks.pass_by(1)
        ranks.pass_by(LIMIT - 2)
        assert ranks.told == [[], []]
        ranks.pass_by(4)
        said = "the first host has not answered for 30 minutes: it hangs, or the way to it is lost"
        assert ranks.told[0][0] == said and ranks.told[1] == []


def test_ranks_of_one_host_wait_for_a_long_preview_though_their_launcher_has_died_with_the_store():
    with Ranks(2, store=Gone(), kept_by="") as ranks, ranks.signs[1].waiting():
        ranks.pass_by(1)
        for _ in range(8):
            ranks.signs[0].give("a preview")
            ranks.pass_by(0.9 * LIMIT)
        assert ranks.told == [[], []]
