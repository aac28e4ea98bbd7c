"""An expert from its files into memory: blocks straight into packed host buffers, one tensor at a time, and the modules
outside the blocks as diffusers has them.

Threads read ahead into a few buffers that are used again and again, so beside the packed blocks there is never more in
host memory than these buffers and the block being packed. Quantization runs on the GPU when there is one. Where the
tensors lie is known to `engine.weights.model_files`; `engine.weights.weight_cache` keeps what was packed.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from engine.system.pinned_memory import HostMemoryRefused, host_buffer
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.wan.block import LINEARS, NORMS, Plain, Weights
from engine.wan.frozen_linear import Packed
from engine.wan.quantize import Grid, pack
from engine.weights.added_changes import AddedChanges
from engine.weights.model_files import FLOAT8, ModelFiles, Network, StoredTensor, weight_of
from engine.weights.packed_blocks import Allocate, Layout, PackedBlocks, layout_of
from presets.errors import UserError
from presets.job.expert_schedule import Expert

READERS = 4  # threads; a network file system needs several requests under way, a local disk is busy with them as well
E4M3_PRECISIONS = ("float8", "qfloat8")
KEYS = (
    *(f"{n}.weight" for n in LINEARS),
    *(f"{n}.bias" for n in LINEARS),
    *(f"{n}.weight" for n in NORMS),
    "norm2.weight",
    "norm2.bias",
    "scale_shift_table",
)


def type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Of a tensor of a Wan transformer: some diffusers loads in fp32 whatever the model's own type `dtype`."""
    fp32 = any(word in name.split(".") for word in WanTransformer3DModel._keep_in_fp32_modules)
    return torch.float32 if fp32 else dtype


def tensor_shapes(config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """Of all tensors of an expert with one block, by diffusers' names; laid out once for each config."""
    return _shapes(json.dumps({**config, "num_layers": 1}, sort_keys=True))


@cache
def _shapes(config: str) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config(json.loads(config))
    return MappingProxyType({name: tuple(t.shape) for name, t in model.state_dict().items()})


def open_expert(source: ModelFiles, expert: Expert) -> Network:
    """The expert's tensors, each checked to be there in the right shape, before anything is read. Raises UserError."""
    part = source.expert(expert)
    count = part.config.get("num_layers")
    if not isinstance(count, int) or count < 1:
        raise UserError(
            "names no number of blocks (num_layers)",
            where=str(part.files[0].parent / "config.json"),
            fix="Download this file again",
        )
    shapes = tensor_shapes(part.config)
    block = {name.removeprefix("blocks.0."): shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    outer = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.0.")}
    part.require(outer | {f"blocks.{i}.{name}": shape for i in range(count) for name, shape in block.items()})
    return part


def load_outer_modules(
    source: ModelFiles, expert: Expert, placement: Placement, *, changes: AddedChanges | None = None
) -> WanTransformer3DModel:
    """The expert without its blocks, as `from_pretrained` would load it, frozen and in eval mode. Raises UserError."""
    part = open_expert(source, expert)
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config({**part.config, "num_layers": 0})
    # its buffers are in no file
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    state = {}
    for name in model.state_dict():
        if changes is not None and changes.has(name):
            changed = changes.added(name, part.stored[name].read(torch.float32))
            state[name] = changed.to(type_of(name, placement.dtype))
        else:
            state[name] = part.stored[name].read(type_of(name, placement.dtype))
    for name, tensor in state.items():
        require_numbers(tensor, name, part.stored[name].file)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval().to(placement.device)


def require_numbers(tensor: torch.Tensor, name: str, file: Path, scale: torch.Tensor | None = None) -> None:
    """Raises UserError for NaN or infinity among weights, or a matrix (or convolution) of zeros alone: a damaged file
    whose header is whole, that would only show as a bad loss.

    Biases and tables may be zero; of Wan's matrices none is. `scale` is that of a weight stored in 8 bits.
    """
    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float16))  # NaN passes through
    scaled = scale is None or bool(torch.isfinite(scale).all())
    if not scaled or not bool(torch.isfinite(torch.stack((low, high))).all()):
        raise UserError(
            f"the weight {name} holds values that are no numbers: the file is damaged",
            where=str(file),
            fix="Download it again",
        )
    matrix = tensor.ndim > 1 and name.endswith(".weight")
    if matrix and (bool((low == 0) & (high == 0)) or (scale is not None and not bool(scale.any()))):
        raise UserError(
            f"the weight {name} holds nothing but zeros: the file is damaged, or was not written to its end",
            where=str(file),
            fix="Download it again",
        )


def load_blocks(
    source: ModelFiles,
    expert: Expert,
    precision: str,
    placement: Placement,
    *,
    progress: Progress,
    grid: Grid = "qint4",
    changes: AddedChanges | None = None,
    allocate: Allocate | None = None,
) -> PackedBlocks:
    """The expert's blocks, packed, where `allocate` says (by default in memory of this process). The placement's type
    is that of activations: biases, norms, and weights of precision none.

    Weights stored in e4m3 with a scale are taken over as they are into float8 and qfloat8: nothing is rounded twice.
    Raises UserError, HostMemoryRefused.
    """
    part = open_expert(source, expert)
    count = part.config["num_layers"]
    order = [part.stored[f"blocks.{i}.{key}"] for i in range(count) for key in KEYS]
    tensors = read_ahead(order, pinned=placement.pinned)
    buffers: list[torch.Tensor] = []
    layout: Layout | None = None
    for i in range(count):
        progress(i, count, "reading blocks")
        weights, plain = _pack_block(
            tensors, precision, placement, grid, block=i, changes=changes, order=order[i * len(KEYS) :]
        )
        layout = layout or layout_of(weights, plain)
        buffers.append(
            host_buffer(layout.bytes, pinned=placement.pinned) if allocate is None else allocate(i, layout.bytes)
        )
        layout.fill(buffers[-1], weights, plain)
        del weights, plain  # not kept while the next block is packed
    progress(count, count, "reading blocks")
    assert layout is not None, "an expert without blocks"
    return PackedBlocks(buffers, layout)


def _pack_block(
    tensors: Iterator[tuple[torch.Tensor, torch.Tensor | None]],
    precision: str,
    placement: Placement,
    grid: Grid,
    *,
    block: int,
    changes: AddedChanges | None,
    order: list[StoredTensor],
) -> tuple[Weights, Plain]:
    """The next block's tensors, on the device; `order` says where they and all after them are stored."""
    device, dtype = placement.device, placement.dtype
    weights: Weights = {}
    plain: Plain = {}
    for key, stored in zip(KEYS, order, strict=False):
        read, scale = next(tensors)
        raw, scale = read.to(device), None if scale is None else scale.to(device)
        name = f"blocks.{block}.{key}"
        require_numbers(raw, name, stored.file, scale)
        if changes is not None and changes.has(name):
            raw, scale = changes.added(name, weight_of(raw, scale, torch.float32)), None
        if (linear := key.removesuffix(".weight")) in LINEARS:
            weights[linear] = tuple(_own(t, read) for t in _pack(raw, scale, precision, dtype, grid))
        else:
            plain[key] = _own(weight_of(raw, scale, type_of(key, dtype)), read)
    return weights, plain


def _own(tensor: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """The tensor, copied when it is still the buffer that the next one is read into."""
    return tensor.clone() if tensor.data_ptr() == read.data_ptr() else tensor


def _pack(raw_NK: torch.Tensor, scale: torch.Tensor | None, precision: str, dtype: torch.dtype, grid: Grid) -> Packed:
    if precision in E4M3_PRECISIONS and raw_NK.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=raw_NK.device) if scale is None else scale
        return raw_NK, one.expand(raw_NK.shape[0], 1).contiguous()
    if precision == "none":
        return pack(weight_of(raw_NK, scale, dtype), precision)
    return pack(
        weight_of(raw_NK, scale, torch.float32) if scale is not None or raw_NK.dtype in FLOAT8 else raw_NK,
        precision,
        grid,
    )


def _reading_buffer(size: int, *, pinned: bool) -> torch.Tensor:
    """Page-locked where the system allows it: here that only makes the way to the device faster."""
    try:
        return host_buffer(size, pinned=pinned)
    except HostMemoryRefused as e:
        if not e.locking:
            raise
        return host_buffer(size, pinned=False)


def _reading_buffers(order: list[StoredTensor], *, pinned: bool) -> list[torch.Tensor]:
    """As many as are used at a time, the smallest first: two hold any tensor, and the others those of up to half its
    size. So a base in fp32, or in GGUF, which is read as fp32, takes 0.8 GiB and not 1.3."""
    largest = max(stored.bytes for stored in order)
    others = max((stored.bytes for stored in order if 2 * stored.bytes <= largest), default=largest)
    return [_reading_buffer(size, pinned=pinned) for size in [others] * (READERS - 1) + [largest] * 2]


def read_ahead(order: list[StoredTensor], *, pinned: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Each tensor as stored, with its scale, in order. It is overwritten when the next one is asked for. Raises
    UserError."""
    free = _reading_buffers(order, pinned=pinned)
    under_way: deque[tuple[torch.Tensor, Future[tuple[torch.Tensor, torch.Tensor | None]]]] = deque()
    todo = deque(order)
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        while todo or under_way:
            while todo and (fits := [i for i, buffer in enumerate(free) if buffer.numel() >= todo[0].bytes]):
                buffer = free.pop(fits[0])
                under_way.append((buffer, pool.submit(todo.popleft().raw, buffer)))
            buffer, future = under_way.popleft()
            yield future.result()
            free.append(buffer)
            free.sort(key=torch.Tensor.numel)
    finally:
        pool.shutdown(cancel_futures=True)
