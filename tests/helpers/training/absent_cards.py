"""The kernels that torch.compile writes for a card, compiled to its machine code by Triton, on a machine without one.

Only what torch and Triton ask a driver is false: which card there is. The graph is traced on the CPU and then taken for
one on fake tensors of the card; Inductor lowers it and writes its kernels, and these go through Triton to the
assembler, as they would there.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode, fake_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _triton
from triton import compile as assemble
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BLOCKS = {"XBLOCK": 32, "YBLOCK": 32, "R0_BLOCK": 64, "RBLOCK": 64}
KERNEL = re.compile(r"async_compile\.triton\('[^']*', '''(.*?)'''", re.DOTALL)
# in place of Inductor's, which look for a card
HEADER = "def heuristics(**given):\n    def kept(fn):\n        return fn, given\n    return kept\n"


def kernels_for(capability: int, function: Callable[..., Any], given: Sequence[torch.Tensor]) -> list[str]:
    """The sources of the kernels that Inductor writes for `function` on tensors such as these, on a card of this
    compute capability."""
    major, minor = divmod(capability, 10)
    card = SimpleNamespace(
        name="a card",
        gcnArchName="a card",
        major=major,
        minor=minor,
        multi_processor_count=82,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1536,
        max_threads_per_block=1024,
        warp_size=32,
        total_memory=24 << 30,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=99 << 10,
    )
    told: list[tuple[Any, str, Any]] = [
        (torch.cuda, "get_device_properties", lambda device=None: card),
        (torch.cuda, "get_device_capability", lambda device=None: (major, minor)),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "_lazy_init", lambda: None),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (CudaInterface, "get_compute_capability", staticmethod(lambda device=None: capability)),
        (CudaInterface, "get_device_properties", staticmethod(lambda device=None: card)),
        (CudaInterface.Worker, "get_device_properties", staticmethod(lambda device=None: card)),
        (_triton, "triton_hash_with_backend", lambda: "none"),
    ]
    _forget()
    with ExitStack() as stack:
        for where, name, answer in told:
            stack.enter_context(mock.patch.object(where, name, answer))
        graph_module = make_fx(function, decomposition_table=select_decomp_table())(*given)
        mode = FakeTensorMode()
        with mode:
            there = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0") for t in given]
        FakeTensorProp(graph_module, mode).propagate_dont_convert_inputs(*there)
        graph = GraphLowering(graph_module)
        with (
            V.set_graph_handler(graph),
            V.set_fake_mode(mode),
            V.set_debug_handler(DebugContext()),
            config.patch(compile_threads=1),
        ):
            graph.run(*there)
            code = graph.codegen()[0]
    _forget()
    return KERNEL.findall(getattr(code, "value", code))


def _forget() -> None:
    """What torch has found out about the cards here, or about those that are not."""
    DeviceProperties.create.cache_clear()
    _triton.has_triton.cache_clear()


def assemble_for(capability: int, source: str, folder: Path) -> None:
    """Compile one kernel for a card. Raises what Triton raises."""
    path = folder / f"kernel_{len(list(folder.iterdir()))}.py"  # Triton reads a kernel from its file
    path.write_text(
        HEADER
        + re.sub(r"@triton_heuristics\.\w+\(", "@heuristics(", source.replace("triton_helpers.set_driver_to_gpu()", ""))
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    [(kernel, given)] = [value for value in vars(module).values() if isinstance(value, tuple)]
    meta = given["triton_meta"]
    sizes = {name: BLOCKS[name] for name in kernel.arg_names if name in BLOCKS}
    constants = {
        (name if isinstance(name, tuple) else (kernel.arg_names.index(name),)): value
        for name, value in {**meta.get("constants", {}), **sizes}.items()
    }
    signature = {name: "constexpr" if name in sizes else meta["signature"][name] for name in kernel.arg_names}
    assemble(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4},
    )
