"""A few of the user's clips as inputs to the experts, and what each linear of a block receives from them.

All samples go through one block before the next block is read, so the host holds one block and the samples' hidden
states. Every fourth clip is held out: it does not weigh, it measures. The
corrections themselves are made in `engine.recovery.build`.

B batch, C channels, F h w latent shape, T tokens, S text tokens, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from engine.data.dataset import Item, build_dataset
from engine.data.frames import DecodeRequest, decode
from engine.encode.latents import PlainEncoder, condition, encode, pixels
from engine.encode.text_embeddings import encode_texts
from engine.encode.vae_encoder import load_vae
from engine.recovery.expert_reader import ExpertReader
from engine.recovery.input_moments import READERS, BlockLinear, Moment
from engine.system.keyed_random import keyed_rng
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.weights.base_model import BaseModel
from engine.weights.load_expert import load_outer_modules
from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, sigma_range

MOST_CLIPS = 8
DRAWS = 4  # noise levels per clip and expert
HELD_OUT_EVERY = 4


class CalibrationSample(NamedTuple):
    """One input of an expert."""

    x_BCFhw: torch.Tensor  # noisy latents and conditioning: 36 channels
    timestep_B: torch.Tensor
    text_BSD: torch.Tensor
    held_out: bool


@torch.no_grad()
def samples_from_clips(
    job: Job, base: BaseModel, placement: Placement, progress: Progress
) -> dict[Expert, list[CalibrationSample]]:
    """Noised clips of the job's one dataset for each expert, at noise levels spread over its range. Raises
    UserError."""
    device = placement.device
    facts = scan_dataset(job.datasets[0], 0, Path.cwd())
    if not facts.clips:
        raise UserError(
            "no readable clip in this folder",
            where=f"--clips {job.datasets[0].path}",
            fix="Give a folder of a few clips like those you will train on",
        )
    items = build_dataset(job, Path.cwd(), [facts])
    items = [items[i * len(items) // MOST_CLIPS] for i in range(MOST_CLIPS)] if len(items) > MOST_CLIPS else items
    placement = Placement.on(device)
    texts = encode_texts(
        base,
        {item.caption for item in items},
        placement,
        precision="none",
        progress=progress,
    )
    encoder = PlainEncoder(load_vae(base.source, placement))
    out: dict[Expert, list[CalibrationSample]] = {expert: [] for expert in EXPERTS}
    for number, item in enumerate(items):
        progress(number, len(items), "clips")
        video = pixels(_frames(item), device=device)
        x0 = encode(encoder, video)
        conditioning = condition(encoder, video[:, :, 0], item.bucket.frames)
        text = texts.batch([item.caption])
        for expert in EXPERTS:
            for draw in range(DRAWS):
                held_out = _held_out(number, len(items), draw)
                out[expert].append(_noised(base, expert, item, draw, x0, conditioning, text, held_out=held_out))
    return out


def _frames(item: Item) -> Any:
    return decode(DecodeRequest(item.path, item.kind, item.bucket, item.sampling, 0.5, False, False, item.hdr))[None]


def _held_out(clip: int, clips: int, draw: int) -> bool:
    """Whole clips when there are several; with a single one, its last noise level."""
    return draw == DRAWS - 1 if clips == 1 else clip % HELD_OUT_EVERY == min(clips, HELD_OUT_EVERY) - 1


def _noised(
    base: BaseModel,
    expert: Expert,
    item: Item,
    draw: int,
    x0: torch.Tensor,
    conditioning: torch.Tensor,
    text: torch.Tensor,
    *,
    held_out: bool,
) -> CalibrationSample:
    low, high = sigma_range(expert, base.boundary)
    sigma = low + (high - low) * (draw + float(keyed_rng(0, "ara sigma", expert, item.id, draw).random())) / DRAWS
    noise = torch.from_numpy(
        keyed_rng(0, "ara noise", expert, item.id, draw).standard_normal(tuple(x0.shape), dtype="float32")
    ).to(x0.device)
    x = torch.cat([(1 - sigma) * x0 + sigma * noise, conditioning], dim=1)
    return CalibrationSample(x.cpu(), torch.tensor([sigma * NUM_TRAIN_TIMESTEPS]), text, held_out)


class _State(NamedTuple):
    """A sample between two blocks; the hidden state lies in host memory."""

    h_BTD: torch.Tensor
    text_BSD: torch.Tensor
    time_B6D: torch.Tensor
    rope: Any
    held_out: bool


class Walk:
    """Samples on their way through an expert."""

    @torch.no_grad()
    def __init__(
        self, reader: ExpertReader, samples: list[CalibrationSample], placement: Placement, *, full: bool
    ) -> None:
        device, dtype = placement.device, placement.dtype
        self.device, self.full = device, full
        self._states: list[_State] = []
        # in fp32, since it runs once per sample
        outer = load_outer_modules(reader.source, reader.expert, replace(placement, dtype=torch.float32))
        for sample in samples:
            x = sample.x_BCFhw.to(device)
            h_BTD = outer.patch_embedding(x).flatten(2).transpose(1, 2)
            _, time, text, _ = outer.condition_embedder(
                sample.timestep_B.to(device), sample.text_BSD.to(device, torch.float32), None
            )
            self._states.append(
                _State(
                    h_BTD.to("cpu", dtype),
                    text.to(dtype),
                    time.unflatten(1, (6, -1)).to(dtype),
                    outer.rope(x),
                    sample.held_out,
                )
            )

    @torch.no_grad()
    def through(self, number: int, block: WanTransformerBlock) -> dict[BlockLinear, Moment]:
        """Take every sample through a block; what its linears received. Raises UserError when that is not finite."""
        moments: dict[BlockLinear, Moment] = {(number, name): Moment() for name in READERS}
        held_out = False

        def listen(moment: Moment) -> Callable[..., None]:
            def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
                if held_out:
                    moment.hold_out(args[0])
                else:
                    moment.add(args[0], full=self.full)

            return hook

        hooks = [block.get_submodule(name).register_forward_pre_hook(listen(moments[number, name])) for name in READERS]
        for i, state in enumerate(self._states):
            held_out = state.held_out
            h = block(state.h_BTD.to(self.device), state.text_BSD, state.time_B6D, state.rope)
            self._states[i] = state._replace(h_BTD=h.cpu())
        for hook in hooks:
            hook.remove()
        for (_, name), moment in moments.items():
            if moment.total is None or not bool(torch.isfinite(moment.total).all()):
                raise UserError(
                    f"the calibration clips give no finite numbers at block {number}, {name}",
                    where="--clips",
                    fix="Check the model's files, or build without --clips",
                )
        return moments
