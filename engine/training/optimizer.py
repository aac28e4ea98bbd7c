"""The optimizer of one expert's LoRA, its learning rate as a function of the step, clipping, and the running
average.

When a step is made is engine.training.trainer's.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch

from engine.adapters.lora import LoraParameters
from presets.errors import UserError
from presets.job.expert_schedule import Expert, lr_of
from presets.job.lora_layers import TrainedLayer
from presets.job.schema import Job, TrainingPanel

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # what an optimizer needs besides torch


# all at one rate, or in groups {"params": .., "lr_factor": ..}
Parameters = list[torch.nn.Parameter] | list[dict[str, Any]]


def parameter_groups(parameters: LoraParameters, layers: Iterable[TrainedLayer]) -> Parameters:
    """An expert's LoRA as `build_optimizer` takes it: in groups by learning rate, where there is more than one."""
    factors = {f"{layer.name}.lora_{side}.weight": layer.lr_factor for layer in layers for side in "AB"}
    if set(factors.values()) == {1.0}:
        return list(parameters.values())
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(factors[name], []).append(parameter)
    return [{"params": params, "lr_factor": factor} for factor, params in groups.items()]


def build_optimizer(training: TrainingPanel, parameters: Parameters) -> torch.optim.Optimizer:
    """AdamW and relatives over fp32 LoRA tensors, all with decoupled weight decay. Raises UserError when the library or
    the card is missing."""
    try:
        return _built(training, parameters)
    except ImportError:
        package = PACKAGES[training.optimizer]
        raise UserError(
            f"{training.optimizer} needs the {package} package",
            where="training.optimizer",
            fix=f'pip install {package}, or set training.optimizer = "adamw"',
        ) from None


def _built(training: TrainingPanel, parameters: Parameters) -> torch.optim.Optimizer:
    lr, decay = training.lr, training.weight_decay
    first = parameters[0]
    device = (first["params"][0] if isinstance(first, dict) else first).device
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=device.type == "cuda")
        case "adamw8bit":
            if device.type != "cuda":
                raise UserError(
                    "adamw8bit needs an NVIDIA GPU", where="training.optimizer", fix='Set training.optimizer = "adamw"'
                )
            import bitsandbytes

            adamw8bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=lr, weight_decay=decay)
            return adamw8bit
        case "adafactor":
            # torch's own multiplies the rate by the size of each tensor, and a LoRA's B begins at 0: it would hardly
            # move.
            from transformers.optimization import Adafactor  # transformers' trainer comes with it, and peft

            adafactor: torch.optim.Optimizer = Adafactor(
                parameters, lr=lr, weight_decay=decay, scale_parameter=False, relative_step=False
            )
            return adafactor
        case "prodigy":
            import prodigyopt

            with redirect_stdout(sys.stderr):  # it prints that its weight decay is decoupled
                prodigy: torch.optim.Optimizer = prodigyopt.Prodigy(
                    parameters, lr=lr, weight_decay=decay, safeguard_warmup=training.warmup_steps > 0
                )
            return prodigy
        case other:
            raise AssertionError(other)


def lr_at(job: Job, expert: Expert, step: int) -> float:
    """An expert's learning rate at optimizer step `step` (from 0): a linear warm-up, then constant, linear to 0, or
    cosine to 0.

    The schedule's position is the step of the whole run, over both experts; it multiplies the rate that the expert has
    of its own, else the common one. So both come to their ends with the run, however the turns are shared.
    """
    training, lr = job.training, lr_of(job, expert)
    if step < training.warmup_steps:
        return lr * (step + 1) / training.warmup_steps
    if training.lr_scheduler == "constant":
        return lr
    span = max(1, training.steps - training.warmup_steps)
    progress = min(1.0, (step - training.warmup_steps) / span)
    factor = 1 - progress if training.lr_scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return lr * factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The expert's rate from now on; a group of layers that has a factor takes its part of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients to at most `max_norm` (0: leave them); returns their norm before, a 0-d tensor, maybe not
    finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def step_if(optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
    """The optimizer's step where `finite` (0-d, of the weights' device) holds; else neither weights nor state move.
    torch's fused kernels look at that themselves, so that they are launched before the device has come to it: what
    launches them takes 5 ms, in which an H200 had nothing to do."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from a saved state. Which kernels make the steps is up to the device that is here: a state saved on a CPU
    names others, which a card cannot tell that a step is not finite."""
    fused, groups = optimizer.defaults.get("fused"), state["param_groups"]
    if fused is not None:
        groups = [{**group, "fused": fused} for group in groups]
    optimizer.load_state_dict({**state, "param_groups": groups})


class Ema:
    """A running average of the LoRA: average = decay * average + (1 - decay) * value, after each step of the expert."""

    def __init__(self, decay: float, values: Mapping[str, torch.Tensor]) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, average in self.average.items():
            average.lerp_(values[name].detach(), 1 - self.decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        assert self.average.keys() == values.keys()
        for name, average in self.average.items():
            average.copy_(values[name])
