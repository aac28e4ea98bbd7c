"""When the idle command's time counts, and when it begins anew."""

from daemon.followup.facts import session_here
from daemon.followup.idle import IdleCount, _count_of


def test_it_counts_from_the_end_of_the_last_job():
    count = IdleCount("boot")
    assert not count.look(10.0, busy=False, arm=False) and count.left(99.0, 1.0) is None  # nothing has run yet
    assert count.look(20.0, busy=True, arm=False) and count.left(20.0, 1.0) is None
    assert not count.look(21.0, busy=True, arm=False)
    assert count.look(30.0, busy=False, arm=False) and count.left(30.0, 1.0) == 60.0
    assert not count.look(50.0, busy=False, arm=False) and count.left(50.0, 1.0) == 40.0
    assert count.left(1000.0, 1.0) == 0.0


def test_a_job_in_between_ends_it_and_its_own_end_begins_it_anew():
    count = IdleCount("boot", since=0.0, armed=True)
    count.look(50.0, busy=True, arm=False)
    count.look(55.0, busy=False, arm=False)
    assert count.left(60.0, 1.0) == 55.0


def test_it_runs_once_for_each_time_of_rest():
    count = IdleCount("boot", since=0.0, armed=True, ran=True)
    assert not count.look(500.0, busy=False, arm=True) and count.left(500.0, 1.0) is None
    count.look(501.0, busy=True, arm=False)
    count.look(502.0, busy=False, arm=False)
    assert count.left(502.0, 1.0) == 60.0


def test_it_counts_from_the_start_where_that_is_asked_for():
    count = IdleCount("boot")
    assert count.look(10.0, busy=False, arm=True) and count.left(10.0, 1.0) == 60.0


def test_another_start_of_the_machine_begins_anew():
    assert _count_of('{"session":"another","since":5.0,"armed":true}') == IdleCount(session_here())
    assert _count_of("") == IdleCount(session_here()) == _count_of("{damaged")
    same = f'{{"session":"{session_here()}","since":5.0,"armed":true}}'
    assert _count_of(same) == IdleCount(session_here(), since=5.0, armed=True)
