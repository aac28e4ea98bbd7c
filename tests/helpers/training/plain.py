"""The reference: a whole expert in memory, its LoRA in peft's own layers, plain autograd."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from engine.adapters import lora
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.wan import attention
from engine.wan.block import LINEARS
from presets.job.lora_layers import TrainedLayer
from presets.planner.plan import Plan
from tests.helpers.training.packing import packed_blocks

CPU = torch.device("cpu")
ADAPTER = "default"


def small_expert(blocks: int, *, seed: int = 0, ffn: int = 64) -> WanTransformer3DModel:
    """An expert of Wan 2.2 I2V A14B's make and a few kilobytes, with random weights."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=36,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=ffn,
        num_layers=blocks,
        image_dim=None,
        rope_max_seq_len=32,
    ).eval()


def attach(
    model: WanTransformer3DModel,
    expert: str,
    *,
    rank: int,
    alpha: float,
    seed: int,
    strong: bool = False,
    layers: list[TrainedLayer] | None = None,
) -> lora.LoraParameters:
    """Give a real model peft layers that hold the tensors of `lora.make`; `strong` fills B, so that the LoRA does
    something."""
    parameters = lora.make(
        model.config, expert, rank=rank, seed=seed, blocks=len(model.blocks), device=CPU, layers=layers
    )
    model.add_adapter(peft_config(rank, alpha, layers), adapter_name=ADAPTER)
    model.requires_grad_(False)
    for name, layer in peft_layers(model):
        if strong:
            up = parameters[f"{name}.lora_B.weight"]
            up.data.normal_(0, 0.4, generator=torch.Generator().manual_seed(len(name) + seed))
        layer.lora_A[ADAPTER].weight = parameters[f"{name}.lora_A.weight"]
        layer.lora_B[ADAPTER].weight = parameters[f"{name}.lora_B.weight"]
    return parameters


def peft_config(rank: int, alpha: float, layers: list[TrainedLayer] | None) -> LoraConfig:
    if layers is None:
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LINEARS), init_lora_weights=False)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[layer.name for layer in layers],
        rank_pattern={re.escape(layer.name): layer.rank for layer in layers if layer.rank != rank},
        alpha_pattern={re.escape(layer.name): layer.alpha for layer in layers if layer.alpha != alpha},
        init_lora_weights=False,
    )


def peft_layers(model: WanTransformer3DModel) -> list[tuple[str, LoraLayer]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]


@contextmanager
def strength(model: WanTransformer3DModel, factor: float) -> Iterator[None]:
    before = [layer.scaling[ADAPTER] for _, layer in peft_layers(model)]
    for _, layer in peft_layers(model):
        layer.scaling[ADAPTER] *= factor
    yield
    for (_, layer), scale in zip(peft_layers(model), before, strict=True):
        layer.scaling[ADAPTER] = scale


class PlainExecutor:
    """The interface of BlockExecutor over a whole diffusers model."""

    def __init__(self, model: WanTransformer3DModel) -> None:
        self.model = model

    @torch.no_grad()
    def predict(self, x, timestep, text, *, strength: float = 1.0) -> torch.Tensor:
        with _scaled(self.model, strength):
            return self.model(x, timestep, text, return_dict=False)[0]

    def forward_backward(self, x, timestep, text, loss, *, strength: float = 1.0) -> torch.Tensor:
        with _scaled(self.model, strength):
            value = loss(self.model(x, timestep, text, return_dict=False)[0])
            value.backward()
        return value.detach()


_scaled = strength


def packed(
    model: WanTransformer3DModel, name: str, parameters: lora.LoraParameters, *, scaling: float, precision: str = "none"
) -> ExpertWeights:
    """The same expert as the executor takes it: packed blocks, and the model itself for the modules outside them."""
    states = [
        {k.replace(".base_layer", ""): v for k, v in block.state_dict().items() if "lora_" not in k}
        for block in model.blocks
    ]
    trained = lora.by_block(parameters, len(states)) if parameters else [{} for _ in states]
    return ExpertWeights(name, model, packed_blocks(states, precision), trained, scaling)


def streamed(weights: ExpertWeights, **plan) -> BlockExecutor:
    return BlockExecutor(
        weights, ExecutorResources(Plan(compiled=False, **plan), attention.CPU, weights.block_bytes, CPU)
    )
