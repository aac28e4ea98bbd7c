"""An expert from its files into memory: blocks straight into packed host buffers, one tensor at a time, and the modules
outside the blocks as diffusers has them.

Threads read ahead into a few buffers that are used again and again, so beside the packed blocks there is never more in
host memory than these buffers and the block being packed. Quantization runs on the GPU when there is one. Where the
tensors lie is known to `engine.weights.model_files`; `engine.weights.weight_cache` keeps what was packed.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from engine.system.pinned_memory import host_buffer
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.wan.block import LINEARS, NORMS, Plain, Weights
from engine.wan.frozen_linear import Packed
from engine.wan.quantize import Grid, pack
from engine.weights.model_files import FLOAT8, ModelFiles, Network, StoredTensor, weight_of
from engine.weights.packed_blocks import Layout, PackedBlocks, layout_of
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
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config({**part.config, "num_layers": 1})
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    block = {name.removeprefix("blocks.0."): shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    outer = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.0.")}
    part.require(outer | {f"blocks.{i}.{name}": shape for i in range(count) for name, shape in block.items()})
    return part


def load_outer_modules(source: ModelFiles, expert: Expert, placement: Placement) -> WanTransformer3DModel:
    """The expert without its blocks, as `from_pretrained` would load it, frozen and in eval mode. Raises UserError."""
    part = open_expert(source, expert)
    with torch.device("meta"):
        model = WanTransformer3DModel.from_config({**part.config, "num_layers": 0})
    # its buffers are in no file
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    state = {name: part.stored[name].read(type_of(name, placement.dtype)) for name in model.state_dict()}
    for name, tensor in state.items():
        require_numbers(tensor, name, part.stored[name].file)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval().to(placement.device)


def require_numbers(tensor: torch.Tensor, name: str, file: Path) -> None:
    """Raises UserError for NaN or infinity among weights: a damaged file whose header is whole, that would only show as
    a bad loss."""
    if not bool(torch.isfinite(tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float16)).all()):
        raise UserError(
            f"the weight {name} holds values that are no numbers: the file is damaged",
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
) -> PackedBlocks:
    """The expert's blocks, packed. The placement's type is that of activations: biases, norms, and weights of precision
    none.

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
        weights, plain = _pack_block(tensors, precision, placement, grid, file=order[i * len(KEYS)].file)
        layout = layout or layout_of(weights, plain)
        buffers.append(host_buffer(layout.bytes, pinned=placement.pinned))
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
    file: Path,
) -> tuple[Weights, Plain]:
    """The next block's tensors, on the device."""
    device, dtype = placement.device, placement.dtype
    weights: Weights = {}
    plain: Plain = {}
    for key in KEYS:
        read, scale = next(tensors)
        raw, scale = read.to(device), None if scale is None else scale.to(device)
        require_numbers(raw, key, file)
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


def read_ahead(order: list[StoredTensor], *, pinned: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Each tensor as stored, with its scale, in order. It is overwritten when the next one is asked for. Raises
    UserError."""
    largest = max(s.place.size for s in order)
    free = deque(host_buffer(largest, pinned=pinned) for _ in range(READERS + 1))
    under_way: deque[tuple[torch.Tensor, Future[tuple[torch.Tensor, torch.Tensor | None]]]] = deque()
    todo = iter(order)
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        while True:
            while free and (stored := next(todo, None)) is not None:
                buffer = free.popleft()
                under_way.append((buffer, pool.submit(stored.raw, buffer)))
            if not under_way:
                return
            buffer, future = under_way.popleft()
            yield future.result()
            free.append(buffer)
    finally:
        pool.shutdown(cancel_futures=True)
