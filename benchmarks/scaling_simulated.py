"""What many GPUs would make of a step, on paper: the exchange of gradients and the checkpoint, simulated.

    python -m benchmarks.scaling_simulated          (the tables of docs/scaling.md, in a second, on any machine)

Nothing here was run on cards. A micro-batch takes what one H100 was measured to take, and the exchange is added to it
whole, though the way back hides most of it. The ring that gathers gradients is played hop by hop, each with the rate of
its link, piece after piece as engine.parallel.ordered_sum sends them, and each rank adds in the order of the ranks. The
formula of presets.planner.several_gpus, which `wanlora plan --gpus` prints, is held against it by a test.
"""

from bisect import bisect_right
from dataclasses import dataclass

from presets.planner.several_gpus import COLLECTIVE, PACKED_GBPS, ROUND, exchange
from presets.planner.sizes import OPTIMIZER_BYTES, ExpertShape

RANK = 16
LORA_BYTES = 4 * ExpertShape().lora_parameters(RANK)  # fp32: 307 MB
PIECE = 2**24  # bytes that a rank sends at once (engine.parallel.ordered_sum)
MEMORY_GBPS = 3000.0  # an H100's, 3.35 TB/s by its sheet
HELD = 0.8  # of a link's sheet, as NCCL reaches it
OPTIMIZER_SECONDS = 0.02
SAVE_EVERY = 250  # steps
DISK_GBPS = 1.0  # written and synced
# seconds of a micro-batch on one H100, streamed, deterministic, with both encodes of its clip (benchmarks.step)
MICRO = {"41x512x512": 2.00 + 0.41, "81x480x832": 10.71 + 1.28}
# 10^9 bytes a second, one way
LINKS = {
    "NVLink 4": 450.0,  # H100 SXM, datasheet: 900 both ways
    "PCIe 5 x16": 55.0 / 2 / HELD,  # measured for copies (55), in and out of host memory
    "InfiniBand NDR": 50.0,  # ConnectX-7, datasheet: 400 Gbit/s, one adapter for each GPU
    "Ethernet 100G": 12.5 / 8,  # IEEE 802.3: 100 Gbit/s, one adapter for the eight GPUs of a node
}


@dataclass(frozen=True)
class Layout:
    """GPUs that train one job."""

    gpus: int
    experts: int  # that train apart
    inside: str  # the link within a node
    between: str = ""  # that between nodes of eight; "" for one node

    @property
    def sharing(self) -> int:
        return self.gpus // self.experts

    @property
    def hops(self) -> list[float]:
        """The rate of each rank's link to the next one of its ring, which closes."""
        nodes = max(1, self.sharing // 8)
        inside = LINKS[self.inside] * HELD
        if not self.between or nodes == 1:
            return [inside] * self.sharing
        outside = LINKS[self.between] * HELD
        return [outside if rank % 8 == 7 else inside for rank in range(self.sharing)]

    @property
    def text(self) -> str:
        links = f"{self.inside}, {self.between}" if self.between else self.inside
        return f"{self.experts} x {self.sharing} | {links if self.sharing > 1 else '-'}"


LAYOUTS = [
    Layout(2, 2, "NVLink 4"),
    Layout(2, 1, "NVLink 4"),
    Layout(2, 1, "PCIe 5 x16"),
    Layout(8, 2, "NVLink 4"),
    Layout(8, 2, "PCIe 5 x16"),
    Layout(64, 2, "NVLink 4", "InfiniBand NDR"),
    Layout(64, 2, "NVLink 4", "Ethernet 100G"),
]


def gathered(sent: int, hops: list[float]) -> float:
    """Seconds until every rank has what all have sent, so many bytes each, and has added it up."""
    ranks = len(hops)
    if ranks == 1:
        return 0.0
    now = ROUND  # what they tell each other of the micro-batch first
    left = sent
    while left > 0:
        piece = min(PIECE, left)
        left -= piece
        now = _ring(piece, hops, now + ranks * COLLECTIVE / -(-sent // PIECE))
        now += 3 * ranks * piece / (MEMORY_GBPS * 1e9)  # read, and added to what is read and written
    return now


def _ring(piece: int, hops: list[float], begin: float) -> float:
    """When the last rank has the last piece: each passes on what it got last, as soon as it has it and its link is
    free."""
    ranks = len(hops)
    has = [begin] * ranks  # when each rank has what it sends next
    free = [begin] * ranks  # when its link is free
    for _ in range(ranks - 1):
        there = [max(has[rank], free[rank]) + piece / (hops[rank] * 1e9) for rank in range(ranks)]
        free = there
        has = [there[rank - 1] for rank in range(ranks)]
    return max(has)


def step_seconds(layout: Layout, micro: float) -> tuple[float, float]:
    """(of an optimizer step in the mean, of its exchange): each rank has one micro-batch of it."""
    exchanged = gathered(LORA_BYTES, layout.hops)
    return (micro + exchanged + OPTIMIZER_SECONDS) / layout.experts, exchanged


def checkpoint_seconds(experts: int) -> float:
    """All wait for it: what the other expert has learnt comes to the first rank, which writes both."""
    learner = LORA_BYTES // 4 * (4 + OPTIMIZER_BYTES["adamw8bit"])
    brought = (experts - 1) * learner / (PACKED_GBPS * 1e9)
    return brought + 2 * learner / (DISK_GBPS * 1e9)


def breaks_even(link: float, micro: float, share: float = 0.1) -> int:
    """The most ranks of one expert whose exchange takes no more than that share of a micro-batch, by the formula."""

    def seconds(ranks: int) -> float:
        return exchange(LORA_BYTES, ranks, link_gbps=link * HELD, memory_gbps=MEMORY_GBPS).seconds

    return bisect_right(range(1, 100_000), share * micro, key=seconds)


def tables() -> list[str]:
    """The lines of docs/scaling.md."""
    lines = [
        "| clips | GPUs | experts x GPUs each | links | received by each, GB | exchange, s | step, s | times one GPU |"
        " of ideal | checkpoints |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for clips, micro in MICRO.items():
        for layout in LAYOUTS:
            step, exchanged = step_seconds(layout, micro)
            one = layout.sharing * micro + OPTIMIZER_SECONDS  # the same step, accumulated
            saving = checkpoint_seconds(layout.experts) / (SAVE_EVERY * step)
            lines.append(
                f"| {clips} | {layout.gpus} | {layout.text} | {(layout.sharing - 1) * LORA_BYTES / 1e9:.2f} |"
                f" {exchanged:.3f} | {step:.2f} | {one / step:.2f} | {one / step / layout.gpus:.0%} | {saving:.1%} |"
            )
    lines += ["", "| link | GB/s one way | most GPUs of an expert, 41x512x512 | 81x480x832 |", "|---|---|---|---|"]
    for name, rate in LINKS.items():
        most = [breaks_even(rate, micro) for micro in MICRO.values()]
        lines.append(f"| {name} | {rate * HELD:.1f} | {most[0]} | {most[1]} |")
    return lines


if __name__ == "__main__":
    print("\n".join(tables()))
