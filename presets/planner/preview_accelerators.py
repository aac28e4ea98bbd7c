"""What the accelerators of previews take, from the headers of their files: bytes in host memory, and on the device
while a preview is made.

They are read and run by engine.adapters.accelerator.
"""

from math import prod
from pathlib import Path

from msgspec import Struct

from presets.base.lora_file import LINEARS, OUTSIDE, PATCHES, LoraFile, read_lora
from presets.errors import UserError
from presets.file_names import expanded
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.schema import Job

# a number of a branch in a block, and of all else: see engine.adapters.accelerator
BRANCH_BYTES, DIFFERENCE_BYTES = 2, 4
BLOCKS_ALIVE = 2  # with their copies on the device: the present one, and the next while it is made


class Accelerated(Struct, frozen=True, kw_only=True):
    """Bytes. `block` is the largest that comes to the device with one block, `stem` what lies there as long as a
    preview is made."""

    host: int = 0
    block: int = 0
    stem: int = 0


def accelerated_by(job: Job, base: Path | None, layers: int) -> Accelerated:
    """The sum over both experts. A file that cannot be read counts nothing: a rule refuses it with its reason."""
    panel = job.sample
    host = block = stem = 0
    for expert, text in zip(EXPERTS, (panel.accelerator, panel.accelerator_low or panel.accelerator), strict=True):
        if not text or not panel.prompts or base is None:
            continue
        try:
            file = read_lora(base / expanded(text))
        except UserError:
            continue
        branches, shifts, around = _sizes(file, expert, layers)
        host += layers * branches + sum(shifts) + around
        block, stem = max(block, branches + max(shifts)), stem + around
    return Accelerated(host=host, block=block, stem=stem)


def _sizes(file: LoraFile, expert: Expert, layers: int) -> tuple[int, list[int], int]:
    """(branches of one block, differences by block, everything outside the blocks). Branches have in every block all
    the linears that any block changes, at the highest rank of any."""
    shapes: dict[str, tuple[int, int, int]] = {}  # linear -> rank, in, out
    shifts, around = [0] * layers, 0
    for (block, module), kinds in file.of(expert).items():
        sizes = {kind: prod(file.shapes[key]) for kind, key in kinds.items() if kind != "alpha"}
        if block == OUTSIDE:
            if module == PATCHES and "A" in kinds:  # factors are multiplied out
                sizes["A"], sizes["B"] = file.shapes[kinds["B"]][0] * prod(file.shapes[kinds["A"]][1:]), 0
            around += DIFFERENCE_BYTES * sum(sizes.values())
            continue
        if "A" in kinds and module in LINEARS:
            rank, inputs = file.shapes[kinds["A"]][:2]
            shapes[module] = max(rank, shapes.get(module, (0,))[0]), inputs, file.shapes[kinds["B"]][0]
        if block < layers:
            shifts[block] += DIFFERENCE_BYTES * sum(size for kind, size in sizes.items() if kind in ("weight", "bias"))
    return BRANCH_BYTES * sum(rank * (inputs + outputs) for rank, inputs, outputs in shapes.values()), shifts, around
