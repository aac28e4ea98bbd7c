"""What the executors of both experts share under one plan: the block's functions, the weight ring, the activations.

The functions are compiled where the plan says so, once per process. What is run with all this:
`engine.executor.block_executor`.

B batch, T tokens, S text tokens, D width, N heads, K head width.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from engine.executor.activation_offload import Activations, KeptActivations, OffloadedActivations
from engine.executor.block_graphs import BlockGraphs, Capture, CudaCapture
from engine.executor.weight_ring import WeightRing
from engine.system.device import compile_alike
from engine.wan import block
from engine.wan.attention import Attention
from engine.wan.block import BlockWeights, PassInputs
from presets.machine.precisions import TRANSFORMER
from presets.planner.plan import Plan


@cache
def _compiled(function: Any, backend: Any = "inductor") -> Any:
    """Compiled once per process: both experts, all blocks, every plan. The backends below are for graphs that many
    blocks keep."""
    from torch._functorch import config

    # The block's own autograd functions are pure: what is made of them depends on the traced graph alone. Else each
    # start traces every function that holds one anew, forward and backward.
    config.autograd_cache_allow_custom_autograd_functions = True
    return torch.compile(function, backend=backend)


def norms_again(graph: Any, inputs: Any, *, gelu: bool = False) -> Any:
    """Inductor, whose backward makes the norms' outputs again where a product reads them: four row tensors of a block
    less to keep, for 0.3 ms of 30 by what they read and write."""
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    from engine.executor.never_again import NeverAgain

    with config.patch(ban_recompute_materialized_backward=False, ban_recompute_not_in_allowlist=not gelu):
        return compile_fx(graph, inputs, config_patches={"joint_custom_pre_pass": NeverAgain()})


def norms_and_gelu_again(graph: Any, inputs: Any) -> Any:
    """The same for the GELU: one row of the feed-forward's width less, for 0.45 ms on an H200."""
    return norms_again(graph, inputs, gelu=True)


def mark_frozen(weights: BlockWeights) -> None:
    """Tell the compiler that these tensors are there until the backward. What a backward makes of one alone, a weight
    transposed or dequantized, the forward would make else, and each kept graph hold: 0.28 GiB a block in float8."""
    from torch._dynamo import mark_static_address  # seconds to import, and only where something is compiled

    for tensors in (*weights.weights.values(), *weights.recovery.values(), tuple(weights.plain.values())):
        for t in tensors:
            mark_static_address(t, guard=False)


def _mark_any_size(*tensors: torch.Tensor, dims: tuple[int, ...]) -> None:
    """Have the compiler take these dimensions for symbols from the first call on. Left to itself it would make
    constants of the first sizes it sees, and compile again for others: which clip gets which code would depend on their
    order, which a resume changes. (The first size still counts as a hint: reductions over the width may be cut
    otherwise where it has no more than 512 tokens.)"""
    from torch._dynamo import maybe_mark_dynamic  # seconds to import, and only where something is compiled

    for t in tensors:
        maybe_mark_dynamic(t, dims)


def _reads_e4m3(device: torch.device) -> bool:
    """Whether compiled code can read float8_e4m3fn there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TRANSFORMER["float8"][0]


class ExecutorResources:
    """`block_bytes` are those of the larger expert. `activations` are taken over where the plan was the same before,
    and made here otherwise. `cuda` as in `engine.executor.weight_ring.WeightRing`; `capture` stands in for CUDA's own
    in tests. `refused` is told why no CUDA graphs can be had where the plan has them; without it that is an
    error."""

    def __init__(
        self,
        plan: Plan,
        attention: Attention,
        block_bytes: int,
        device: torch.device,
        cuda: Any = None,
        activations: Activations | None = None,
        capture: Capture | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        assert not (plan.save_hidden and plan.graphed), "a CUDA graph has fixed addresses for no hidden states"
        self.plan, self.attention, self.device = plan, attention, device
        self.fixed_order = attention.deterministic and device.type == "cuda"  # the CPU's order is fixed as it is
        if self.fixed_order and plan.compiled:
            compile_alike()
        made: Callable[..., Any] = _compiled if plan.compiled else lambda function, backend=None: function
        self._pre_attention, self._text_kv = made(block.pre_attention), made(block.text_kv)
        self._post_attention = made(block.post_attention)
        self._pre_attention_again = made(block.pre_attention_again)
        self._kept_pre_attention = made(block.pre_attention, norms_again)
        self._kept_post_attention = made(block.post_attention, norms_again if plan.keep_gelu else norms_and_gelu_again)
        self._post_attention_saving = made(block.post_attention_saving)
        self._post_attention_again = made(block.post_attention_again)
        self._any_size = plan.compiled and plan.any_size
        self.e4m3_as_bytes = plan.precision == "qfloat8" and not _reads_e4m3(device)
        if cuda is None and device.type == "cuda":
            cuda = torch.cuda
        self.graphs = (
            BlockGraphs(plan.graphed, capture or CudaCapture(device), refused, prove=attention.deterministic)
            if plan.graphed
            else None
        )
        self.ring = WeightRing(block_bytes, plan.slots, device, cuda)
        self.activations = activations or (
            KeptActivations()
            if plan.activations == "device"
            else OffloadedActivations(device, cuda, stay=plan.last_on_device, pinned=plan.pinned)
        )

    def pre_attention(
        self, x_BTD: torch.Tensor, given: PassInputs, weights: BlockWeights, *, kept: bool = False
    ) -> Any:
        """q, k, v (B, T, N, K) of all tokens; their graph may be `kept`."""
        if self._any_size:
            _mark_any_size(x_BTD, given.cos, given.sin, dims=(0, 1))
            _mark_any_size(given.time_B6D, dims=(0,))
        function = self._kept_pre_attention if kept else self._pre_attention
        return function(x_BTD, given.time_B6D, given.cos, given.sin, weights)

    def pre_attention_again(
        self, x_BTD: torch.Tensor, g_BTD: torch.Tensor, given: PassInputs, weights: BlockWeights
    ) -> Any:
        """The same for a backward, which adds `g_BTD` to the gradient of x."""
        if self._any_size:
            _mark_any_size(x_BTD, g_BTD, given.cos, given.sin, dims=(0, 1))
            _mark_any_size(given.time_B6D, dims=(0,))
        return self._pre_attention_again(x_BTD, g_BTD, given.time_B6D, given.cos, given.sin, weights)

    def text_kv(self, given: PassInputs, weights: BlockWeights) -> Any:
        """The cross-attention's keys and values (B, S, N, K)."""
        if self._any_size:
            _mark_any_size(given.text_BSD, dims=(0,))
        return self._text_kv(given.text_BSD, weights)

    def post_attention(
        self,
        x_BTD: torch.Tensor,
        a_BTD: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        given: PassInputs,
        weights: BlockWeights,
        *,
        kept: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """The block's output for a run of tokens, from its input and its attention's output there; then what
        `post_attention_again` is given, where the plan saves that and the output's graph is not `kept`."""
        self._mark_post((x_BTD, a_BTD), text, given)
        arguments = x_BTD, a_BTD, *text, given.time_B6D, weights, self.attention.to_text
        if kept:
            return (self._kept_post_attention(*arguments),)
        if self.plan.save_hidden:
            return tuple(self._post_attention_saving(*arguments))
        return (self._post_attention(*arguments),)

    def post_attention_again(
        self,
        x_BTD: torch.Tensor,
        a_BTD: torch.Tensor,
        saved: tuple[torch.Tensor, ...],
        text: tuple[torch.Tensor, torch.Tensor],
        given: PassInputs,
        weights: BlockWeights,
    ) -> Any:
        """Something else than that output, with the same gradients, for which less is computed."""
        self._mark_post((x_BTD, a_BTD, *saved), text, given)
        return self._post_attention_again(x_BTD, a_BTD, saved, *text, given.time_B6D, weights, self.attention.to_text)

    def _mark_post(self, rows: tuple[torch.Tensor, ...], text: tuple[torch.Tensor, ...], given: PassInputs) -> None:
        if self._any_size:
            _mark_any_size(*rows, dims=(0, 1))
            _mark_any_size(*text, given.time_B6D, dims=(0,))
