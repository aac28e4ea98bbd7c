"""What is said of the processes that train one run together."""

from presets.machine.gpu_health import GpuHealth
from presets.runs.ranks import RankSeen
from wanlora_tui.widgets.machine_health import gpu_rows, pace_rows


def said(**ranks: RankSeen) -> str:
    rows = pace_rows({int(name[1:]): seen for name, seen in ranks.items()})
    return "\n".join("".join(part if isinstance(part, str) else part[0] for part in row) for row in rows)


def test_one_process_says_nothing_more_than_before():
    assert said(r0=RankSeen("high_noise", 2.0, 25.6)) == "" == said()


def test_each_of_several_has_its_pace_and_memory_and_the_slowest_is_named():
    text = said(r1=RankSeen("low_noise", 2.5, 24.0), r0=RankSeen("high_noise", 2.0, 25.6))
    assert text.split("\n") == ["rank 0: 2.00 s 25.6 GiB  1: 2.50 s 24.0 GiB  ", "slowest 1: 2.50 s a step"]
    on_cpu = said(r0=RankSeen("high_noise", 2.0), r1=RankSeen("high_noise", 1.0))
    assert on_cpu.split("\n") == ["rank 0: 2.00 s  1: 1.00 s  ", "slowest 0: 2.00 s a step"]


def test_of_many_the_first_are_drawn_and_the_slowest_is_named_all_the_same():
    text = said(**{f"r{n}": RankSeen("", 1.0 + n / 100) for n in range(64)})
    assert "7: 1.07 s" in text and "8: " not in text
    assert text.endswith("and 56 ranks more\nslowest 63: 1.63 s a step")


def test_of_many_gpus_each_has_a_line_and_those_that_have_none_are_counted():
    few, many = ([GpuHealth(gpu=f"GPU-{n}", busy=n) for n in range(count)] for count in (4, 12))
    assert len(gpu_rows(few)) == 8
    rows = ["".join(part if isinstance(part, str) else part[0] for part in row) for row in gpu_rows(many)]
    assert [row.split()[1] for row in rows[:8]] == [f"{n}%" for n in range(8)]
    assert rows[8:] == ["and 4 GPUs more"]
