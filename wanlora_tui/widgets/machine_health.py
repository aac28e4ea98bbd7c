"""How the GPUs of a run do, and whether its disk has room for what it still writes: one line in a narrow place, a few
in a tall one."""

from collections.abc import Mapping, Sequence

from textual.content import Content

from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth
from presets.runs.ranks import RankSeen
from presets.text import escaped, human
from wanlora_tui.output.formatting import seconds_each
from wanlora_tui.terminal.rows import Rows

DIM, VALUE, WARNING = "$text-muted", "bold", "bold $text-warning"
MOST_ROWS, MOST_LINES = 4, 8  # GPUs that have rows of their own, or a line each where there are more
NO_RANKS: Mapping[int, RankSeen] = {}

Part = str | tuple[str, str]


class MachineHealth(Rows):
    """Renders what the daemon's beat says of the machine; nothing of what it does not say."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[RunMachine | None, int | None, Mapping[int, RankSeen]] | None = None

    def on_resize(self) -> None:
        # behind the layout under way: within it Textual keeps the height of the rows of before
        self.call_after_refresh(self._show_again)

    def _show_again(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, machine: RunMachine | None, wanted: int | None, ranks: Mapping[int, RankSeen] = NO_RANKS) -> None:
        """`wanted`: bytes that the run still writes; None: nobody can tell. `ranks`: the processes that train it
        together."""
        self._last = machine, wanted, ranks
        seen = machine or RunMachine()
        disk = disk_parts(seen, wanted)
        if self.screen.has_class("-wide"):
            rows = gpu_rows(seen.gpus)
            self.put([Content.assemble(*row) for row in [*rows, *pace_rows(ranks), disk]])
            return
        gpus = [part for gpu in seen.gpus for part in line_parts(gpu)]
        short = seen.disk_free is not None and wanted is not None and seen.disk_free < wanted
        gpus += [part for row in pace_rows(ranks)[-1:] for part in (*row, " ")]
        line = [*disk, "  ", *gpus] if short else [*gpus, " " if gpus else "", *disk_parts(seen, None)]
        said = Content.assemble(*line)
        self.put([said] if said.plain.strip() else [])


def disk_parts(machine: RunMachine, wanted: int | None) -> list[Part]:
    """`disk 118 GiB free, 3.1 GiB to come`, as a warning where that does not suffice; nothing while it is not known."""
    free = machine.disk_free
    if free is None:
        return []
    to_come = f", {human(wanted)} to come" if wanted else ""
    if wanted is not None and free < wanted:
        return [(f"! disk {human(free)} free{to_come}", WARNING)]
    return [("disk ", DIM), (f"{human(free)} free", VALUE), (to_come, DIM)]


def still_to_write(planned: int, machine: RunMachine | None) -> int | None:
    """Bytes that a run still writes, of what it has at its fullest; None when that is not known."""
    if not planned or machine is None or machine.disk_used is None:
        return None
    return max(0, planned - machine.disk_used)


def pace_rows(ranks: Mapping[int, RankSeen]) -> list[list[Part]]:
    """Of several processes, what a step takes each, its memory, and which of them the others wait for."""
    if len(ranks) < 2:
        return []
    slowest = max(ranks, key=lambda rank: ranks[rank].seconds)
    each: list[Part] = []
    for rank, seen in sorted(ranks.items())[:MOST_LINES]:
        memory = f" {seen.vram_gib:.1f} GiB" if seen.vram_gib else ""
        each += [(f"{rank}: ", DIM), (f"{seconds_each(seen.seconds)} s{memory}  ", VALUE)]
    rows: list[list[Part]] = [[("rank ", DIM), *each[n : n + 4]] for n in range(0, len(each), 4)]  # two of them each
    return [
        *rows,
        *_more(len(ranks), "ranks"),
        [("slowest ", DIM), (f"{slowest}: {seconds_each(ranks[slowest].seconds)} s a step", VALUE)],
    ]


def gpu_rows(gpus: Sequence[GpuHealth]) -> list[list[Part]]:
    """A few rows for each of few GPUs, a line for each of more, and how many are not shown."""
    if len(gpus) <= MOST_ROWS:
        return [row for gpu in gpus for row in block_rows(gpu)]
    rows = [line_parts(gpu) for gpu in gpus[:MOST_LINES]]
    return [*rows, *_more(len(gpus), "GPUs")]


def _more(count: int, of: str) -> list[list[Part]]:
    """A row for those that have none."""
    return [[(f"and {count - MOST_LINES} {of} more", DIM)]] if count > MOST_LINES else []


def line_parts(gpu: GpuHealth) -> list[Part]:
    words = [_percent(gpu), _heat(gpu), _power(gpu), f"{gpu.clock} MHz" if gpu.clock is not None else "-"]
    return [("GPU ", DIM), (" ".join(words), VALUE), " ", (_held_back(gpu), WARNING), " " if gpu.held_back else ""]


def block_rows(gpu: GpuHealth) -> list[list[Part]]:
    clocks = "-" if gpu.clock is None else f"{gpu.clock}/{gpu.clock_most or '-'} MHz"
    memory = (
        "-"
        if gpu.memory_used is None or not gpu.memory_total
        else f"{gpu.memory_used / 2**30:.1f}/{gpu.memory_total / 2**30:.0f} GiB"
    )
    rows: list[list[Part]] = [
        [("GPU ", DIM), (_percent(gpu), VALUE), ("  heat ", DIM), (_heat(gpu), VALUE), ("  power ", DIM),
         (_power(gpu), VALUE)],
        [("clock ", DIM), (clocks, VALUE), ("  in use, by all ", DIM), (memory, VALUE)],
    ]  # fmt: skip
    if gpu.held_back is None:
        return rows
    return [*rows, [("held back by ", DIM), (_held_back(gpu) or "nothing", WARNING if gpu.held_back else VALUE)]]


def _percent(gpu: GpuHealth) -> str:
    return "-" if gpu.busy is None else f"{gpu.busy}%"


def _heat(gpu: GpuHealth) -> str:
    return "-" if gpu.temperature is None else f"{gpu.temperature}°C"


def _power(gpu: GpuHealth) -> str:
    if gpu.power is None:
        return "-"
    return f"{gpu.power:.0f} W" if gpu.power_limit is None else f"{gpu.power:.0f}/{gpu.power_limit:.0f} W"


def _held_back(gpu: GpuHealth) -> str:
    return escaped(", ".join(gpu.held_back or []))
