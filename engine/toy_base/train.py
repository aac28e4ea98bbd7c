"""Train the toy base from nothing, on one GPU:

    python -m engine.toy_base.train vae STATE       # about 9 minutes on an H100
    python -m engine.toy_base.train experts STATE   # about 9 more
    python -m engine.toy_base.train score STATE
    python -m engine.toy_base.train package STATE FOLDER

STATE keeps what was trained; `--seed` and `--steps` change a run. B batch, F latent frames, h w latent sides.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import nn

from engine.toy_base.clip_vae import decode, encode, flat_convolutions
from engine.toy_base.films import CAPTIONS, FRAMES, render, scenes
from engine.toy_base.parts import (
    SHIFT,
    SIGMAS,
    embed,
    first_frame,
    new_expert,
    new_vae,
    normalize,
    with_short_captions,
    write_base,
)
from engine.toy_base.score import fidelity, report
from presets.text import loss_text

# of the VAE: colours and shapes are learned from single frames, ten for each film of a batch
IMAGE_STEPS, FILM_STEPS, FILMS = 7500, 6100, 24
EXPERT_STEPS, CLIPS, BATCH = 15_000, 100_000, 512
UNSEEN = 64  # films that latents are normalized by and the VAE is scored on
LATENT_NOISE = 0.05  # on the latents that the decoder sees
NO_CAPTION = 0.1  # share of clips without one, for guidance


def rate(step: int, steps: int, peak: float, warm: int) -> float:
    """Learning rate: a linear rise, then half a cosine down to a fiftieth."""
    return peak * min(1.0, (step + 1) / warm) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train_vae(state: Path, seed: int, steps: int | None, device: torch.device) -> None:
    """Stage one: single frames. Stage two: films. Squared error, absolute error, and that of the differences of
    neighbours."""
    vae = new_vae().to(device)
    generator = torch.Generator(device).manual_seed(seed)
    averaged = [p.detach().clone() for p in vae.parameters()]
    lr, optimizer = _adamw(vae, weight_decay=1e-5)
    stages = [
        (1, 10 * FILMS, IMAGE_STEPS if steps is None else steps, 2e-3),
        (FRAMES, FILMS, FILM_STEPS if steps is None else steps, 1.5e-3),
    ]

    def loss_of(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean = encode(vae, video)[:, :16].float()
            back = decode(vae, mean + torch.randn_like(mean) * LATENT_NOISE).float()
        wrong = back - video
        edges = (wrong[..., 1:] - wrong[..., :-1]).square().mean() + (
            wrong[..., 1:, :] - wrong[..., :-1, :]
        ).square().mean()
        loss = 4 * wrong.square().mean() + 0.5 * wrong.abs().mean() + 2 * edges + 1e-4 * mean.square().mean()
        return loss, wrong.detach().square().mean()

    fast = _compiled(loss_of, device)
    for frames, batch, count, peak in stages:
        for step in range(count):
            _set_rate(lr, optimizer, rate(step, count, peak, 200))
            loss, error = fast(render(scenes(batch, generator), frames)[0])
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(averaged, [p.detach() for p in vae.parameters()], 0.01 if step > 200 else 0.2)
            if (step + 1) % 500 == 0:
                _say(f"vae, {frames} frames, step {step + 1}: {10 * math.log10(4 / error.item()):.1f} dB")
    with torch.no_grad():
        for p, average in zip(vae.parameters(), averaged, strict=True):
            p.copy_(average.to(torch.bfloat16))  # as it will be stored
        video = render(scenes(UNSEEN, torch.Generator(device).manual_seed(seed + 1)))[0]
        latents = torch.cat([encode(vae, part)[:, :16] for part in video.split(16)])
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    state.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(state / "vae")
    _say(f"VAE on unseen films: {fidelity(vae, device, UNSEEN)}")


@torch.no_grad()
def clip_latents(
    vae: AutoencoderKLWan, count: int, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Films, their conditioning (first frame, then zeros), both normalized (N, 16, F, h, w) in fp16, and their captions
    (N)."""
    normalized = _compiled(lambda video: normalize(vae, encode(vae, video)[:, :16].float()), device)
    generator, batch = torch.Generator(device).manual_seed(seed), min(32, count)
    found: tuple[list[torch.Tensor], ...] = ([], [], [])
    for _ in range(math.ceil(count / batch)):
        scene = scenes(batch, generator)
        video = render(scene)[0]
        for kept, value in zip(
            found, (normalized(video).half(), normalized(first_frame(video)).half(), scene.captions_B), strict=True
        ):
            kept.append(value)
    return torch.cat(found[0]), torch.cat(found[1]), torch.cat(found[2])


def train_experts(state: Path, seed: int, steps: int | None, device: torch.device) -> None:
    """Flow matching, each expert on its own noise; both in turns, so that neither waits for the other."""
    vae = AutoencoderKLWan.from_pretrained(state / "vae").to(device).requires_grad_(False)
    text = embed([*CAPTIONS, ""]).to(device)
    clips = clip_latents(vae, CLIPS if steps is None else BATCH, seed, device)
    count = EXPERT_STEPS if steps is None else steps
    learners = {name: Learner(sigmas, text, clips, device, seed) for name, sigmas in SIGMAS.items()}
    for step in range(count):
        for learner in learners.values():
            learner.step(rate(step, count, 1.2e-3, 600))
        if (step + 1) % 2000 == 0:
            _say(
                f"step {step + 1}: "
                + ", ".join(f"{name} {loss_text(learner.loss.item())}" for name, learner in learners.items())
            )
    for name, learner in learners.items():
        save_file(learner.averaged_state(), state / f"{name}.safetensors")


class Learner:
    """One expert with its optimizer and running average. On a GPU its whole step is one CUDA graph: the model is too
    small to wait for launches."""

    def __init__(
        self,
        sigmas: tuple[float, float],
        text: torch.Tensor,
        clips: tuple[torch.Tensor, ...],
        device: torch.device,
        seed: int,
    ) -> None:
        self.net = with_short_captions(new_expert(), device)
        self._forward = _compiled(self.net, device)
        self._text, self._clips, self._device = text, clips, device
        self._batch = BATCH if device.type == "cuda" else 4
        self._range = [s / (SHIFT - (SHIFT - 1) * s) for s in sigmas]  # before the shift
        self._nothing = torch.full((self._batch,), len(text) - 1, device=device)
        self._mask = torch.zeros(self._batch, 4, *clips[0].shape[2:], device=device)
        self._mask[:, :, 0] = 1
        self._lr, self._optimizer = _adamw(self.net, weight_decay=0.01)
        self._averaged = [p.detach().clone() for p in self.net.parameters()]
        self.loss = torch.zeros((), device=device)
        torch.manual_seed(seed)
        self._graph: Any = None
        if device.type == "cuda":
            _set_rate(self._lr, self._optimizer, 1e-5)
            self._graph = _graph_of(self._step)

    def step(self, lr: float) -> None:
        _set_rate(self._lr, self._optimizer, lr)
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _step(self) -> None:
        latents, conditioning, captions = self._clips
        B, device = self._batch, self._device
        chosen = torch.randint(0, len(latents), (B,), device=device)
        x0, first = latents[chosen].float(), conditioning[chosen].float()
        low, high = self._range
        u = low + (high - low) * torch.rand(B, device=device)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        noise, s = torch.randn_like(x0), sigma.view(-1, 1, 1, 1, 1)
        spoken = torch.where(torch.rand(B, device=device) < NO_CAPTION, self._nothing, captions[chosen])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = self._forward(
                torch.cat([(1 - s) * x0 + s * noise, self._mask, first], 1),
                sigma * 1000,
                self._text[spoken],
                return_dict=False,
            )[0]
        loss = (out.float() - (noise - x0)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, [p.detach() for p in self.net.parameters()], 0.001)
            self.loss.lerp_(loss.detach(), 0.01)

    def averaged_state(self) -> dict[str, torch.Tensor]:
        names = [name for name, _ in self.net.named_parameters()]
        return {**self.net.state_dict(), **dict(zip(names, self._averaged, strict=True))}


def _adamw(net: nn.Module, *, weight_decay: float) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """The learning rate is a tensor on a GPU, which a captured graph reads anew each time."""
    device = next(net.parameters()).device
    lr, on_gpu = torch.tensor(1e-5, device=device), device.type == "cuda"
    optimizer = torch.optim.AdamW(
        net.parameters(),
        lr=lr if on_gpu else 1e-5,
        betas=(0.9, 0.98),
        weight_decay=weight_decay,
        fused=on_gpu,
        capturable=on_gpu,
    )
    return lr, optimizer


def _set_rate(lr: torch.Tensor, optimizer: torch.optim.Optimizer, value: float) -> None:
    lr.fill_(value)
    if not lr.is_cuda:
        for group in optimizer.param_groups:
            group["lr"] = value


def _compiled(function: Any, device: torch.device) -> Any:
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def _graph_of(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is made once must exist before capturing
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def load_experts(state: Path) -> dict[str, Any]:
    """Both experts as `train_experts` left them."""
    experts = {name: new_expert() for name in SIGMAS}
    for name, net in experts.items():
        net.load_state_dict(load_file(state / f"{name}.safetensors"))
    return experts


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine.toy_base.train", description="Train the toy base.")
    parser.add_argument("what", choices=["vae", "experts", "score", "package"])
    parser.add_argument("state", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", help="of the finished base, for package")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of each stage, for a try")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    with flat_convolutions():
        match args.what:
            case "vae":
                train_vae(args.state, args.seed, args.steps, device)
            case "experts":
                train_experts(args.state, args.seed + 17, args.steps, device)
            case _:
                vae, experts = AutoencoderKLWan.from_pretrained(args.state / "vae"), load_experts(args.state)
                if args.what == "package":
                    write_base(args.folder, vae, experts)
                else:
                    print(json.dumps(report(vae, experts, device), indent=2))


if __name__ == "__main__":
    main()
