"""What a micro-batch is trained on, as a sum of terms, each with its own forward and backward.

The executor runs the terms one after another; gradients add up in the LoRA, so no second graph is ever alive.
B batch, C latent channels, F h w latent shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from presets.clips.captions import replace_word
from presets.job.schema import AdvancedPanel, TrainingPanel

Rows = list[int] | slice  # of a micro-batch; a slice where it is all of them, for a list is copied to the device


@dataclass(frozen=True)
class LossTerm:
    """One loss: predict `rows` of the micro-batch with `text`, compare by `loss` (prediction -> scalar, its weight
    included)."""

    name: str
    text_BSD: torch.Tensor  # B: as many as rows
    loss: Callable[[torch.Tensor], torch.Tensor]
    rows: Rows


def distance(
    kind: str, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean loss over all elements, in fp32, each times what the mask (B, 1, F, h, w) says. huber has its corner at 1.

    The sum is divided by the number of elements, not by the sum of the mask: what is white gets the very gradient that
    it would get without a mask, what is black that of it which the dataset's minimum says, and a small or dark mask
    never makes the little that it leaves count more. So the loss of a masked clip reads lower.
    """
    prediction, target = prediction.float(), target.float()
    reduction = "mean" if mask is None else "none"
    if kind == "mae":
        loss = F.l1_loss(prediction, target, reduction=reduction)
    elif kind == "huber":
        loss = F.huber_loss(prediction, target, delta=1.0, reduction=reduction)
    else:
        loss = F.mse_loss(prediction, target, reduction=reduction)
    return loss if mask is None else (loss * mask).mean()


def noised(x0: torch.Tensor, noise: torch.Tensor, sigma_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching: x_t = (1 - s) x0 + s e, and the velocity target e - x0 (Lipman et al. 2023, as Wan is trained)."""
    s = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - s) * x0 + s * noise, noise - x0


def main_term(
    training: TrainingPanel,
    advanced: AdvancedPanel,
    text_BSD: torch.Tensor,
    target: torch.Tensor,
    weight: float,
    mask: torch.Tensor | None = None,
) -> LossTerm:
    """The flow-matching loss, times `weight` (this micro-batch's share of the optimizer step), under the clips' masks
    (B, 1, F, h, w), where they have any.

    Differential guidance moves the target away from the current prediction p: p + scale (target - p), p without
    gradient (ai-toolkit's formula). The gradient is the plain one times the scale with MSE, the plain one itself with
    MAE; with huber the error is taken scale times as large, so its corner comes scale times sooner. The loss shown is
    scale^2 (MSE) as large.
    """

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        goal = target
        if advanced.differential_guidance:
            p = prediction.detach().float()
            goal = p + advanced.differential_guidance_scale * (target - p)
        return weight * distance(training.loss, prediction, goal, mask)

    return LossTerm("main", text_BSD, loss, slice(None))


def preserves(training: TrainingPanel) -> bool:
    """Whether a second term keeps the base model's answers: DOP or blank prompt preservation, which exclude each
    other."""
    return training.dop or training.blank_prompt_preservation


def preserved_prompt(training: TrainingPanel, caption: str, trigger: str) -> str:
    """The prompt whose answer is to stay as the base's while `caption` trains: DOP's class prompt, or the empty one."""
    return class_prompt(caption, trigger, training.dop_class) if training.dop else ""


def preservation_term(
    training: TrainingPanel, text_BSD: torch.Tensor, base_prediction: torch.Tensor, rows: Rows, weight: float
) -> LossTerm:
    """Answer as the base model does, where the trigger is not called (`text_BSD` are the preserved prompts): MSE times
    the multiplier. It is not masked: what is to stay as it was, is so everywhere.

    `rows` are the samples of the micro-batch that it holds for, and that text and prediction are of; `weight` is their
    share of the step.
    """
    multiplier = training.dop_multiplier if training.dop else training.blank_prompt_preservation_multiplier

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return weight * multiplier * distance("mse", prediction, base_prediction)

    return LossTerm("preservation" if training.dop else "blank_prompt", text_BSD, loss, rows)


def class_prompt(caption: str, trigger: str, dop_class: str) -> str:
    """The caption with the class word for the trigger; the class word alone when the caption does not name the
    trigger."""
    text, times = replace_word(caption, trigger, dop_class) if trigger else (caption, 0)
    return text if times else dop_class
