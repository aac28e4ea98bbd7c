"""The small figures of the dashboard, and how the machine does, without a screen."""

import pytest
from textual.app import App, ComposeResult
from textual.content import Content

from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth
from wanlora_tui.widgets.machine_health import block_rows, disk_parts, line_parts, still_to_write
from wanlora_tui.widgets.meters import MemoryBar, in_columns, sparkline

GIB = 2**30
CARD = GpuHealth(
    gpu="GPU-1", busy=97, memory_used=20 * GIB, memory_total=24 * GIB, temperature=71, power=310.4, power_limit=350.0,
    clock=1755, clock_most=1980, held_back=["power limit", "too hot"],
)  # fmt: skip


def plain(parts) -> str:
    return Content.assemble(*parts).plain


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 5, ""),
        ([1.0], 5, ""),
        ([1.0, 1.0, 1.0], 5, "▁▁▁"),
        ([1.0, 1.01, 1.0], 5, "▁▁▁"),
        ([1.0, 2.0, 8.0], 5, "▁▂█"),
        ([9.0, 1.0, 2.0], 2, "▁█"),
        ([1.0, 2.0], 0, ""),
        ([0.0, 0.0], 5, "▁▁"),
    ],
)
def test_a_sparkline(values: list[float], width: int, drawn: str):
    assert sparkline(values, width) == drawn


COST = ("cost", "EUR 1234.56/EUR 9999.99")


@pytest.mark.parametrize(
    ("cells", "width", "across", "drawn"),
    [
        ([("lr", "1e-4"), ("a", "b"), ("c", "d"), ("e", "f")], 42, 4, "lr 1e-4    a b        c d       e f"),
        ([COST], 30, 4, "cost EUR 1234.56/EUR 9999.99"),  # alone: the whole row is its own
        ([("lr", "1e-4"), ("norm", "0.3"), COST], 60, 4, "lr 1e-4        norm 0.3       cost EUR 1234.56/EUR 9999.99"),
        ([("lr", "1e-4"), COST], 40, 2, "lr 1e-4     cost EUR 1234.56/EUR 9999.99"),  # begins before its column
        ([COST, ("load", "0.2 s")], 42, 2, "cost EUR 1234.56/EUR 9999.99 load 0.2 s"),  # the next one behind its own
        ([("a", "b"), ("lr", "1e-4"), COST], 34, 3, "a b lr 1e-4 cost EUR 1234.56/EUR …"),
        ([COST, ("load", "0.2 s")], 28, 2, "cost EUR 1234.56/EUR 9999.99"),
    ],
)  # fmt: skip
def test_figures_in_columns_take_what_room_the_row_has(
    cells: list[tuple[str, str]], width: int, across: int, drawn: str
):
    assert in_columns(cells, width, across).plain.rstrip() == drawn


@pytest.mark.parametrize(
    ("width", "drawn"),
    [
        (30, "VRAM ███████████░░ 22.1/24 GiB"),
        (21, "VRAM ███░ 22.1/24 GiB"),
        (20, "VRAM 22.1/24 GiB"),
        (16, "VRAM 22.1/24 GiB"),
    ],
)
async def test_a_bar_gives_way_to_its_numbers(width: int, drawn: str):
    class Bars(App[None]):
        def compose(self) -> ComposeResult:
            yield MemoryBar()

    app = Bars()
    async with app.run_test(size=(width, 2)):
        bar = app.query_one(MemoryBar)
        bar.show("VRAM", 22.1, 24.0)
        assert bar.rows[0].plain == drawn


def test_a_gpu_in_one_line_and_in_a_few():
    assert plain(line_parts(CARD)) == "GPU 97% 71°C 310/350 W 1755 MHz power limit, too hot "
    rows = [plain(row) for row in block_rows(CARD)]
    assert rows == [
        "GPU 97%  heat 71°C  power 310/350 W",
        "clock 1755/1980 MHz  in use, by all 20.0/24 GiB",
        "held back by power limit, too hot",
    ]


def test_what_is_not_known_is_a_dash():
    nothing = GpuHealth(gpu="MIG-1")
    assert plain(line_parts(nothing)).split() == ["GPU", "-", "-", "-", "-"]
    assert [plain(row) for row in block_rows(nothing)] == ["GPU -  heat -  power -", "clock -  in use, by all -"]
    assert plain(disk_parts(RunMachine(), None)) == ""


def test_the_disk_against_what_is_still_to_come():
    machine = RunMachine(disk_free=10 * GIB, disk_used=2 * GIB)
    assert still_to_write(5 * GIB, machine) == 3 * GIB and still_to_write(GIB, machine) == 0
    assert still_to_write(0, machine) is None and still_to_write(5 * GIB, None) is None
    assert plain(disk_parts(machine, 3 * GIB)) == "disk 10.0 GiB free, 3.0 GiB to come"
    assert plain(disk_parts(machine, 0)) == "disk 10.0 GiB free"
    short = disk_parts(machine, 11 * GIB)
    assert plain(short) == "! disk 10.0 GiB free, 11.0 GiB to come" and "warning" in short[0][1]
