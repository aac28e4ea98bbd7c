from wanlora_tui.remote.liveness import (
    BEATEN_SECONDS,
    BUSY_BYTES,
    DOUBT_SECONDS,
    GAP_SECONDS,
    PING_SECONDS,
    SILENT_SECONDS,
    WOKEN_SECONDS,
    Liveness,
)

STEP = 0.125


def asked(now: float = 100.0) -> Liveness:
    """A line that has just been asked."""
    line = Liveness(now)
    assert line.wants_ping(now) and not line.wants_ping(now)
    return line


def silent_after(line: Liveness, now: float, *, bytes_per_second: float = 0.0, limit: float = 20.0) -> float | None:
    """Seconds until it counts as silent."""
    passed = 0.0
    while passed < limit:
        passed += STEP
        line.look(now + passed, 0, int(bytes_per_second * passed))
        if line.silent_for(now + passed):
            return passed
    return None


def test_a_line_that_does_not_answer_is_silent_after_three_seconds():
    found = silent_after(asked(), 100.0)
    assert found is not None and SILENT_SECONDS <= found < SILENT_SECONDS + 3 * STEP


def test_it_is_asked_again_a_while_after_each_answer_and_never_twice_at_once():
    line = asked()
    line.look(100.4, 0, 0)
    assert not line.wants_ping(100.4 + 10 * PING_SECONDS)
    line.look(100.5, 1, 0)
    assert not line.wants_ping(100.5) and line.wants_ping(100.0 + PING_SECONDS)


def test_nothing_asked_is_no_silence():
    assert silent_after(Liveness(100.0), 100.0) is None


def test_a_line_that_brings_much_is_not_silent_and_one_that_brings_little_is():
    assert silent_after(asked(), 100.0, bytes_per_second=3 * BUSY_BYTES) is None
    assert silent_after(asked(), 100.0, bytes_per_second=BUSY_BYTES / 4) is not None


def test_an_answer_ends_the_silence():
    line = asked()
    assert silent_after(line, 100.0)
    line.look(105.0, 1, 0)
    assert not line.silent_for(105.0)


def test_after_a_sleep_of_the_machine_it_has_little_time():
    line = asked()
    woken = 100.0 + 3600 + GAP_SECONDS
    line.look(woken, 0, 0)
    assert not line.silent_for(woken)  # an answer may be there, not yet looked at
    found = silent_after(line, woken)
    assert found is not None and WOKEN_SECONDS <= found < WOKEN_SECONDS + 3 * STEP


def test_a_sleep_while_nothing_was_asked_is_followed_by_a_question():
    line = asked()
    line.look(100.2, 1, 0)
    woken = 4000.0
    line.look(woken, 1, 0)
    assert line.wants_ping(woken)
    line.look(woken + WOKEN_SECONDS + STEP, 1, 0)
    assert line.silent_for(woken + WOKEN_SECONDS + STEP)


def test_another_line_is_dialled_before_the_silence_and_takes_over_before_it():
    line, passed, doubtful, beaten = asked(), 0.0, 0.0, 0.0
    while not beaten:
        passed += STEP
        line.look(100.0 + passed, 0, 0)
        doubtful = doubtful or (passed if line.is_doubtful(100.0 + passed) else 0.0)
        beaten = line.silent_for(100.0 + passed, beside=True)
        assert not line.silent_for(100.0 + passed)
    assert DOUBT_SECONDS <= doubtful < DOUBT_SECONDS + 2 * STEP and BEATEN_SECONDS <= beaten < BEATEN_SECONDS + 2 * STEP
    line.look(100.0 + passed, 1, 0)
    assert not line.is_doubtful(100.0 + passed) and not line.silent_for(100.0 + passed, beside=True)


def test_a_line_that_always_answers_slowly_is_not_doubted_for_that():
    line, now = asked(), 100.0
    for n in range(1, 20):
        for _ in range(int(1.5 / STEP)):
            now += STEP
            line.look(now, n - 1, 0)
            assert n == 1 or not line.is_doubtful(now)
        line.look(now, n, 0)
        assert line.wants_ping(now + PING_SECONDS)
        now += PING_SECONDS
    for n in range(20, 60):  # and once it is quick, it is soon doubted as any other
        line.look(now, n, 0)
        now += PING_SECONDS
        assert line.wants_ping(now)
    line.look(now + DOUBT_SECONDS, 59, 0)
    assert line.is_doubtful(now + DOUBT_SECONDS)


def test_a_line_that_brings_much_is_not_doubted():
    line = asked()
    for n in range(1, 80):
        line.look(100.0 + n * STEP, 0, int(3 * BUSY_BYTES * n * STEP))
        assert not line.is_doubtful(100.0 + n * STEP) and not line.silent_for(100.0 + n * STEP, beside=True)
