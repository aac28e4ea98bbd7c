"""The typed job: one msgspec Struct per panel of the guide.

Each field carries its one description (label, help, range, unit) in its annotation. `presets.job.fields` reads it from
here for the wizard, `--set`, the error texts and `docs/job-file.md`; nothing describes a field a second time.
"""

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Auto = Literal["auto"]
Kind = Literal["motion", "style", "character"]


def about(label: str, help: str, *, unit: str = "", refused: dict[str, str] | None = None, **limits: Any) -> Meta:
    """One field's description; `refused` are values that people know from elsewhere, with what speaks against each;
    `limits` are msgspec's ge, gt, le, lt, min_length, max_length, pattern."""
    return Meta(title=label, description=help, extra={"unit": unit, "refused": refused or {}}, **limits)


# A table: the formatter would make ten lines of one field.
# fmt: off
class JobPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, about("Training name",
        "Names the run folder and the LoRA files. Letters, digits, dot, underscore, dash; 1 to 64.",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")]
    kind: Annotated[Kind, about("Kind",
        "What the LoRA teaches: a motion or camera move, a visual style, or one character.")] = "motion"
    trigger: Annotated[str, about("Trigger word",
        "A made-up word that switches the LoRA on. Replaces [trigger] in captions and prompts. Motion LoRAs usually "
        "need none; style and character LoRAs should have one.", max_length=100)] = ""
    gpus: Annotated[list[int], about("GPUs",
        "Number of each GPU the job may use, as nvidia-smi counts them; within CUDA_VISIBLE_DEVICES where that is "
        "set, 0 is the first it names.", min_length=1)] = field(default_factory=lambda: [0])
    gpus_per_clip: Annotated[int, about("GPUs per clip",
        "GPUs of one host that share each clip, by tokens and heads: for clips too long or too slow for one card. The "
        "LoRA agrees with one GPU's within rounding, not to the bit.", ge=1, le=64)] = 1
    seed: Annotated[int, about("Seed",
        "Same seed, same data, same machine class: same LoRA, bit for bit.", ge=0, le=2**63 - 1)] = 42


class MergePanel(Struct, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, about("LoRA to merge",
        "LoRA file, or peft's folder of one, that becomes part of the frozen base while its weights are read: a "
        "distilled base, an earlier style. Training and previews both see it; the trained LoRA does not hold it.")] = ""
    strength: Annotated[float, about("Strength", "How much of it is merged; below 0 takes it away.",
        ge=-10, le=10)] = 1.0
    expert: Annotated[Literal["both", "high_noise", "low_noise"], about("Expert",
        "Which expert it is merged into. A file that holds both experts gives each its own.")] = "both"


class ModelPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, about("Name or path",
        "The base, Wan 2.2 I2V A14B: Hub id; folder as diffusers or Wan's own repository has it, or of ComfyUI's (also "
        "GGUF) files, its whole models folder too; or one expert's file, the other beside it. The two experts are "
        "enough.",
        min_length=1)] = "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16"
    vae: Annotated[str, about("VAE",
        "Hub id, folder or file (.safetensors, .pth) of the Wan 2.1 VAE. Empty: beside the experts, else "
        "ai-toolkit/wan2.1-vae.")] = ""
    text_encoder: Annotated[str, about("Text encoder",
        "Hub id, folder or file (.safetensors, .pth, .gguf) of UMT5-XXL; its tokenizer in it, beside it, or the "
        "known one. Empty: beside the experts, else "
        "ai-toolkit/umt5_xxl_encoder.")] = ""
    boundary: Annotated[Literal["model"] | float, about("Expert boundary",
        "Noise level that divides the two experts. 'model' takes the model's own boundary_ratio (0.9 for I2V); a "
        "number overrides it.")] = "model"
    low_vram: Annotated[Auto | bool, about("Low VRAM",
        "Trade some speed for a lower memory peak. 'auto' decides from the free memory.")] = "auto"
    layer_offloading: Annotated[Auto | bool, about("Layer offloading",
        "Keep the frozen weights in host RAM and bring each block to the GPU when its turn comes. For cards of 10-12 "
        "GB it wants 64 GB of RAM.")] = "auto"
    cuda_graphs: Annotated[Auto | bool, about("CUDA graphs",
        "Record the blocks of images and short clips once and queue each by one call: they wait for the launching "
        "thread otherwise. 'auto' and true take them where they are clearly faster, false never.")] = "auto"
    merge: Annotated[list[MergePanel], about("Merged LoRAs",
        "LoRAs that are merged into the base, in this order.")] = field(default_factory=list)


class QuantizationPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    transformer: Annotated[Literal["auto", "none", "float8", "int8", "qfloat8", "qint8", "qint4", "qint4+ara"],
        about("Transformer", "Precision of the frozen experts. 'none' keeps bf16; float8 and int8 also multiply in 8 "
        "bits, which is faster.")] = "auto"
    ara: Annotated[str, about("Accuracy recovery adapter",
        "Path or Hub id of the adapter that repairs 4-bit weights. Used with qint4+ara.")] = ""
    text_encoder: Annotated[Literal["none", "float8", "qint8"], about("Text encoder",
        "Precision of the UMT5 text encoder. float8 costs next to no quality.")] = "float8"


class ExpertPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    """What one expert does otherwise than the common values say."""

    lr: Annotated[Annotated[float, Meta(gt=0, le=10)] | None, about("Learning rate",
        "Of this expert alone. Left out, it is the common one.")] = None
    rank: Annotated[Annotated[int, Meta(ge=1, le=1024)] | None, about("Linear rank",
        "Of this expert's LoRA alone. Left out, it is the common one.")] = None
    share: Annotated[float, about("Share of the steps",
        "Steps of this expert in proportion to the other's share: 2 against 1 gives it two turns of three.",
        gt=0, le=1000)] = 1.0


class MultistagePanel(Struct, kw_only=True, forbid_unknown_fields=True):
    high_noise: Annotated[bool, about("Train high noise",
        "Train the expert of the early, noisy timesteps: composition, motion, camera.")] = True
    low_noise: Annotated[bool, about("Train low noise",
        "Train the expert of the late, clean timesteps: detail, identity, texture.")] = True
    switch_every: Annotated[int, about("Switch every",
        "Optimizer steps on one expert before the other has its turn. 10 suits most cards; 1 when switching is free.",
        unit="steps", ge=1, le=100_000)] = 10
    high: ExpertPanel = field(default_factory=ExpertPanel)
    low: ExpertPanel = field(default_factory=ExpertPanel)


class LayersPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    """What some layers do otherwise than their expert. Of two tables that name the same layer, the later one counts."""

    match: Annotated[str, about("Layers",
        "Which layers, by name or block: blocks.0-9, cross_attn.k, blocks.30-39.ffn.", min_length=1)]
    rank: Annotated[Annotated[int, Meta(ge=1, le=1024)] | None, about("Linear rank",
        "Of these layers, for both experts; it counts more than an expert's own. Their alpha keeps the common "
        "alpha / rank. Left out, it is the expert's.")] = None
    lr_factor: Annotated[Annotated[float, Meta(gt=0, le=1000)] | None, about("Learning-rate factor",
        "These layers learn at the expert's rate times this, through warm-up, schedule and changes of the rate while "
        "the job trains. Left out, it is 1.")] = None


class TargetPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    type: Annotated[Literal["lora"], about("Target type", "What is trained.", refused={
        "lokr": "LoKr keeps for the backward pass of each linear a tensor as wide as its input, where a LoRA keeps one "
            "as wide as its rank, and no plan reckons with that",
        "dora": "DoRA does not come out as it was trained: ComfyUI takes the norm of columns where peft takes that of "
            "rows, and diffusers leaves its scales out for Wan",
    })] = "lora"
    rank: Annotated[int, about("Linear rank",
        "Capacity of the LoRA. 16 is enough for most; 32 for complex looks or close-up faces on large cards.",
        ge=1, le=1024)] = 16
    alpha: Annotated[Annotated[float, Meta(gt=0)] | None, about("Alpha",
        "LoRA scale is alpha / rank. Left out, it equals the rank.")] = None
    include: Annotated[list[str], about("Layers to train",
        "Names or blocks, in Wan's or diffusers' spelling: self_attn, attn2.to_k, ffn, blocks.0-19, blocks.30-39.ffn. "
        "Empty: all ten linears of every block.")] = field(default_factory=list)
    exclude: Annotated[list[str], about("Layers to leave out",
        "The same patterns; what they name does not train, also where it is included.")] = field(default_factory=list)
    layers: Annotated[list[LayersPanel], about("Layers of their own",
        "A rank or learning-rate factor for some layers.")] = field(default_factory=list)
    start_high: Annotated[str, about("Start, high noise",
        "LoRA file (ours, ai-toolkit's, musubi's, diffusion-pipe's, diffusers') or run folder that the high-noise "
        "LoRA goes on from. Its rank may be smaller than this job's, not larger. Read once, when the run begins.")] = ""
    start_low: Annotated[str, about("Start, low noise",
        "The same for the low-noise LoRA. A run, or a file for both experts, may be given for each.")] = ""


class SavePanel(Struct, kw_only=True, forbid_unknown_fields=True):
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], about("Data type",
        "Precision of the LoRA files. Checkpoints always hold fp32.")] = "bf16"
    every: Annotated[int, about("Save every", "Steps between checkpoints.", unit="steps", ge=1)] = 250
    keep: Annotated[int, about("Checkpoints to keep",
        "The newest ones stay; the best is often not the last, so keep several.", ge=2, le=1000)] = 4
    metadata: Annotated[Literal["plain", "full"], about("Metadata",
        "plain: what others need to use the LoRA, and the job without its prompts, captions and folders; full: the "
        "whole job, and how often each word of the captions comes.")] = "plain"
    ema: Annotated[bool, about("Save the average",
        "With EMA on, the LoRA files hold the running average; off, the trained weights as they stand.")] = True


class TrainingPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    steps: Annotated[int, about("Steps",
        "Optimizer steps in all, over both experts. 1500-2500 for motion and style, 2000-3000 for a character.",
        unit="steps", ge=1, le=1_000_000)] = 2000
    batch_size: Annotated[int, about("Batch size",
        "Clips per forward pass. 1 is realistic; 2-4 on 80 GB and more.", ge=1, le=64)] = 1
    gradient_accumulation: Annotated[int, about("Gradient accumulation",
        "Batches added up before one optimizer step. 4 batches of 1 clip give the gradient of 1 batch of 4, for less "
        "memory; unlike a batch, they may differ in shape.", ge=1, le=1024)] = 1
    lr: Annotated[float, about("Learning rate",
        "1e-4 suits Wan LoRAs. Lower to 5e-5 if the LoRA takes over too fast.", gt=0, le=10)] = 1e-4
    optimizer: Annotated[Literal["adamw", "adamw8bit", "adafactor", "prodigy"], about("Optimizer",
        "adamw keeps its state in fp32; adamw8bit in 8 bits (NVIDIA cards, package bitsandbytes); adafactor keeps "
        "next to none, at adamw's learning rate; prodigy finds its own rate (package prodigyopt), so its learning "
        "rate is 1.")] = "adamw"
    lr_scheduler: Annotated[Literal["constant", "linear", "cosine"], about("Learning-rate schedule",
        "How the rate moves after the warm-up.")] = "constant"
    warmup_steps: Annotated[int, about("Warm-up",
        "Steps during which the learning rate rises from 0.", unit="steps", ge=0)] = 0
    weight_decay: Annotated[float, about("Weight decay",
        "Mild regularization. Leave at 1e-4 without a reason.", ge=0, le=1)] = 1e-4
    max_grad_norm: Annotated[float, about("Gradient clipping",
        "Largest gradient norm of a step. 0 turns clipping off.", ge=0)] = 1.0
    deterministic: Annotated[bool, about("Deterministic",
        "A GPU adds in a fixed order, so that a resumed run equals an uninterrupted one to the bit. Off, attention's "
        "backward is faster on some cards (wanlora plan says by how much), and a resumed run differs in the last "
        "digits.")] = True
    loss: Annotated[Literal["mse", "mae", "huber"], about("Loss type",
        "Mean squared error is the standard for flow matching.")] = "mse"
    timestep_type: Annotated[Literal["linear", "sigmoid", "shift"], about("Timestep type",
        "How timesteps are drawn inside an expert's range: evenly, towards the middle, or towards noise.")] = "linear"
    timestep_bias: Annotated[Literal["balanced", "high_noise", "low_noise"], about("Timestep bias",
        "Lean towards layout and motion (high noise) or towards detail and identity (low noise).")] = "balanced"
    ema: Annotated[bool, about("Use EMA",
        "Keep a running average of the LoRA. Costs memory; LoRAs rarely need it.")] = False
    ema_decay: Annotated[float, about("EMA decay", "How slowly the average follows.", gt=0, lt=1)] = 0.99
    unload_text_encoder: Annotated[bool, about("Unload text encoder",
        "Encode only the trigger word, then drop the encoder: captions are not used. Only for "
        "trigger-only training.")] = False
    cache_text_embeddings: Annotated[bool, about("Cache text embeddings",
        "Encode every caption once. Only for captions that never change: not with DOP, best with dropout 0.")] = False
    dop: Annotated[bool, about("Output preservation (DOP)",
        "Differential output preservation: a second loss that keeps the base model's answer to each caption with the "
        "class word for the trigger (the class word alone where the caption has no trigger). On regularization clips "
        "too. About doubles the work; helps style and character LoRAs.")] = False
    dop_multiplier: Annotated[float, about("DOP multiplier", "Weight of the preservation loss.", ge=0, le=100)] = 1.0
    blank_prompt_preservation: Annotated[bool, about("Blank prompt preservation",
        "A second loss that keeps the base model's answer to the empty prompt, but on clips whose caption was dropped"
        " this time. About doubles the work; not together with DOP.")] = False
    blank_prompt_preservation_multiplier: Annotated[float, about("Blank prompt multiplier",
        "Weight of the blank prompt loss.", ge=0, le=100)] = 1.0
    dop_class: Annotated[str, about("DOP class",
        "The ordinary word that stands in for the trigger: person, scene, landscape.", max_length=100)] = "person"


class AdvancedPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    differential_guidance: Annotated[bool, about("Differential guidance",
        "Push the target away from the current prediction. With the MSE loss this is the plain gradient times the "
        "scale: under Adam it mostly comes to nothing but stronger clipping and less weight for DOP. With MAE it does"
        " nothing.")] = False
    differential_guidance_scale: Annotated[float, about("Guidance scale",
        "3 for edit-like LoRAs, 1-2 for broad looks.", gt=0, le=100)] = 3.0


class DatasetPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    path: Annotated[str, about("Folder",
        "Folder of clips, each with a caption of the same name (.txt or .caption). Relative to the job file.",
        min_length=1)]
    exclude: Annotated[list[str], about("Left out",
        "Clips of the folder that do not train, by file name (orbit/castle.mp4 of a folder in it): to start previews "
        "from what the LoRA has not seen, or because a clip is no good.")] = field(default_factory=list)
    default_caption: Annotated[str, about("Default caption",
        "Used for a clip without its own caption file.", max_length=10_000)] = ""
    caption_extension: Annotated[str, about("Caption extension",
        "How caption files end, for folders with several texts beside each clip, such as .long.txt. Left empty: .txt "
        "or .caption.", pattern=r"^(\.[^/\s]+)?\Z", max_length=40)] = ""
    caption_dropout: Annotated[float, about("Caption dropout",
        "How often the caption is replaced by the empty one.", ge=0, le=1)] = 0.05
    weight: Annotated[float, about("LoRA weight", "Strength of the LoRA while this dataset trains.", ge=0, le=10)] = 1.0
    repeats: Annotated[int, about("Repeats",
        "How many times each clip comes in one epoch, each time with noise, timestep, flips and dropout of its own.",
        ge=1, le=10_000)] = 1
    regularization: Annotated[bool, about("Is regularization",
        "Clips that show what should stay as it is, captioned without the trigger. They train with the same loss, "
        "evenly spread among the other clips for either expert, as often as their number and repeats say.")] = False
    cache_latents: Annotated[bool, about("Cache latents",
        "Encode once and reuse. Only for image datasets (1 frame); never for clips.")] = False
    flip_x: Annotated[bool, about("Flip X",
        "Mirror left and right half of the time. Turns an orbit round: off for motion and for "
        "asymmetric characters.")] = False
    flip_y: Annotated[bool, about("Flip Y", "Mirror upside down half of the time.")] = False
    resolutions: Annotated[list[Annotated[int, Meta(ge=64, le=4096)]], about("Resolutions",
        "Bucket sizes; R means an area of at most R x R pixels at the clip's own shape. Clips are never enlarged.",
        unit="px", min_length=1)] = field(default_factory=lambda: [512])
    num_frames: Annotated[int, about("Frames",
        "Frames taken from each clip: 4n+1, so 1, 5, 9, ... 33, 41, 81. 1 trains on images.",
        unit="frames", ge=1, le=1025)] = 41
    sampling: Annotated[Literal["uniform", "realtime", "head"], about("Frame sampling",
        "uniform spreads the frames over the whole clip, which changes its speed; realtime takes a window at 16 "
        "frames a second, at another place each time; head takes the one that the clip begins with.")] = "uniform"
    windows: Annotated[int, about("Windows of a clip",
        "How many windows of a long clip train in each epoch, with realtime or head. They do not overlap, so a clip "
        "gives no more than lie side by side in it. realtime spreads them over the clip; head takes one after the "
        "other from its beginning.", ge=1, le=1000)] = 1
    short_clips: Annotated[Literal["refuse", "shorten"], about("Short clips",
        "What becomes of a clip too short for its frames: refuse keeps the job from starting; shorten trains the "
        "clip on the most frames it has, in steps of 4n+1.")] = "refuse"
    hdr: Annotated[Literal["plain", "tonemap"], about("HDR video",
        "plain reads HDR clips (PQ, HLG) as ordinary ones, which look washed out; tonemap brings them to what an "
        "ordinary screen shows.")] = "plain"
    last_frame: Annotated[float, about("Last frame",
        "How often a clip is trained with its last frame given as well as its first, for LoRAs that go from one "
        "picture to another. 0.5: half of the visits. Images have none.", ge=0, le=1)] = 0.0
    mask: Annotated[Literal["auto", "off"], about("Loss masks",
        "auto trains where a clip's mask is white: castle.mask.png or castle.mask.mp4 beside castle.mp4, a grey still "
        "or a video with a frame for each of the clip's. A clip without one trains everywhere. off leaves masks "
        "alone.")] = "auto"
    mask_min: Annotated[float, about("Mask minimum",
        "How much black in a mask counts, against white. Above 0, what is masked stays near what it was.",
        ge=0, le=1)] = 0.1


class PromptPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    prompt: Annotated[str, about("Prompt", "What the preview shows. [trigger] is replaced.", max_length=10_000)]
    ctrl_img: Annotated[str, about("Control image",
        "The image the preview starts from. Wan 2.2 I2V cannot make a preview without one.")] = ""
    end_img: Annotated[str, about("End image",
        "The image the preview is to end at, cropped to the control image's shape; of a video, its last frame. For "
        "LoRAs trained with datasets.last_frame. Empty: the end is open.")] = ""
    width: Annotated[Annotated[int, Meta(ge=16, le=4096)] | None, about("Width",
        "Of this preview alone, a multiple of 16. Left out, it is the common one.", unit="px")] = None
    height: Annotated[Annotated[int, Meta(ge=16, le=4096)] | None, about("Height",
        "Of this preview alone, a multiple of 16. Left out, it is the common one.", unit="px")] = None
    num_frames: Annotated[Annotated[int, Meta(ge=1, le=1025)] | None, about("Preview frames",
        "Of this preview alone: 4n+1. Left out, they are the common ones.", unit="frames")] = None
    seed: Annotated[Annotated[int, Meta(ge=0, le=2**63 - 1)] | None, about("Seed",
        "Of this preview alone. Left out, it follows the common one.")] = None
    strength: Annotated[float, about("LoRA strength",
        "How strongly the LoRA acts in this preview; 0 shows the base model.", ge=0, le=10)] = 1.0


class SamplePanel(Struct, kw_only=True, forbid_unknown_fields=True):
    every: Annotated[int, about("Sample every",
        "Steps between previews. 0 makes none but the first and the last.", unit="steps", ge=0)] = 250
    first: Annotated[bool, about("First sample", "Make previews before step 1, to compare with.")] = True
    preset: Annotated[Literal["custom", "quick", "official"], about("Preview preset",
        "What holds for the sampler, steps, guidance, shift and negative prompt that are left out; one that is given "
        "wins. custom: Euler, 25 steps, guidance 4. quick: Euler, 4 steps, guidance 1, for an accelerator LoRA. "
        "official: as Wan's own demos, UniPC, 40 steps, guidance 3.5, its Chinese negative prompt.")] = "custom"
    sampler: Annotated[Literal["flowmatch", "unipc"] | None, about("Sampler",
        "flowmatch is Euler on the flow; unipc is the multistep sampler of the model. Left out, the preset says.")
        ] = None
    shift: Annotated[Annotated[float, Meta(gt=0, le=100)] | None, about("Preview shift",
        "Moves the sampling steps towards noise: larger gives the high-noise expert more of them. Left out, it is 5, "
        "the official value; some use 3 at 480p.")] = None
    width: Annotated[int, about("Width",
        "A multiple of 16. The control image keeps its shape inside this area.", unit="px", ge=16, le=4096)] = 768
    height: Annotated[int, about("Height", "A multiple of 16.", unit="px", ge=16, le=4096)] = 768
    guidance: Annotated[Annotated[float, Meta(ge=0, le=50)] | None, about("Guidance scale",
        "3.5 to 4 for Wan 2.2; 1 with an accelerator. Left out, the preset says.")] = None
    guidance_low: Annotated[Annotated[float, Meta(ge=0, le=50)] | None, about("Guidance, low noise",
        "Of the low-noise expert alone. Left out, both have the same.")] = None
    steps: Annotated[Annotated[int, Meta(ge=1, le=1000)] | None, about("Sample steps",
        "Denoising steps. Beyond 25 little changes. Left out, the preset says.", unit="steps")] = None
    seed: Annotated[int, about("Sample seed", "Fixed, so that previews can be compared.", ge=0, le=2**63 - 1)] = 42
    walk_seed: Annotated[bool, about("Walk seed", "Each prompt of a set takes the next seed.")] = True
    num_frames: Annotated[int, about("Preview frames",
        "4n+1, best equal to the training frames; others change the speed of what was learned.",
        unit="frames", ge=1, le=1025)] = 41
    fps: Annotated[int, about("FPS",
        "Playback rate of the preview file. Wan moves at 16.", unit="1/s", ge=1, le=120)] = 16
    negative: Annotated[Annotated[str, Meta(max_length=10_000)] | None, about("Negative prompt",
        "What the previews should avoid. Left out, the preset says: nothing, but for official.")] = None
    ema: Annotated[bool, about("Sample the average",
        "With EMA on, previews show the running average; off, the trained weights as they stand.")] = True
    accelerator: Annotated[str, about("Accelerator LoRA",
        "Few-step LoRA file (such as lightx2v's) that previews alone use, so that 4 sample steps do: with preset = "
        "quick. Training never sees it.")] = ""
    accelerator_low: Annotated[str, about("Accelerator, low noise",
        "The file for the low-noise expert. Left empty, both experts use the same.")] = ""
    accelerator_strength: Annotated[float, about("Accelerator strength",
        "How strongly the accelerator acts.", gt=0, le=10)] = 1.0
    prompts: Annotated[list[PromptPanel], about("Prompts",
        "2 to 4 prompts like your clips, each with its control image. None: no previews "
        "are made.")] = field(default_factory=list)


class ValidationPanel(Struct, kw_only=True, forbid_unknown_fields=True):
    fraction: Annotated[float, about("Held-out fraction",
        "Part of the clips that never trains: its loss shows when the LoRA overfits. Which ones, their content says. "
        "Regularization clips all train. 0: none are held out.", ge=0, lt=1)] = 0.0
    path: Annotated[str, about("Held-out folder",
        "Folder of clips with captions that are measured instead, taken as the first dataset's are; then every "
        "clip of the datasets trains.")] = ""
    every: Annotated[int, about("Validate every",
        "Steps between measurements of the held-out loss. One more comes before step 1, one at the end.",
        unit="steps", ge=1)] = 250
    bins: Annotated[int, about("Noise bins",
        "Each expert's range of noise is cut into so many equal parts, and each clip is measured in each of them.",
        ge=1, le=64)] = 4
    stop_when: Annotated[Literal["never", "no better"], about("Stop early",
        "'no better' ends the run, with all its files, once the held-out loss no longer falls.")] = "never"
    patience: Annotated[int, about("Patience",
        "Measurements in a row without a better one, by more than its standard error, before the run ends early.",
        ge=1, le=1000)] = 4


class Job(Struct, kw_only=True, forbid_unknown_fields=True):
    """A complete training job. Relative paths in it are relative to the job file."""

    job: JobPanel
    model: ModelPanel = field(default_factory=ModelPanel)
    quantization: QuantizationPanel = field(default_factory=QuantizationPanel)
    multistage: MultistagePanel = field(default_factory=MultistagePanel)
    target: TargetPanel = field(default_factory=TargetPanel)
    save: SavePanel = field(default_factory=SavePanel)
    training: TrainingPanel = field(default_factory=TrainingPanel)
    advanced: AdvancedPanel = field(default_factory=AdvancedPanel)
    datasets: Annotated[list[DatasetPanel], about("Datasets", "One or more folders of clips.", min_length=1)]
    sample: SamplePanel = field(default_factory=SamplePanel)
    validation: ValidationPanel = field(default_factory=ValidationPanel)
# fmt: on


def suggested_name(kind: Kind, folder: str) -> str:
    """A training name from the name of the folder of clips: `wan_i2v_motion_orbit`. Letters that a name cannot have
    become underscores."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", folder).strip("._-")
    return f"wan_i2v_{kind}_{clean}"[:64].rstrip("._-")
