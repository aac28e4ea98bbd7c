"""The steps of the wizard: their order, titles, and what its help says about each.

What a step shows is in wanlora_tui.screens.wizard.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    hint: str  # one or two lines, shown while no field has the focus
    help: str  # the page of its help
    hint_of_copy: str = ""  # in place of the hint, in the copy of a job


STEPS: tuple[Step, ...] = (
    Step(
        "kind",
        "Kind",
        "What should the LoRA teach? Up and down choose, Enter takes it and continues.",
        "Wan 2.2 I2V has two experts: the high-noise one lays out composition, motion and camera; the low-noise one"
        " draws detail, identity and texture. Which of them matters more, and what your clips and captions must show,"
        " depends on what the LoRA is to teach. The kind sets the starting values of everything that follows. You can"
        " change it later; values that you set by hand stay as they are.",
    ),
    Step(
        "clips",
        "Clips",
        "Type a folder (Tab completes it) and press Enter, or browse with ^O. In the table x leaves a clip out,"
        " Enter shows it and its caption. Several folders make several datasets.",
        "Use real video files (mp4, mov, mkv, webm), not GIFs, or images for a one-frame dataset. Trim each clip so"
        " that what it shows starts at once and fills it. Clips may differ in length: each gives the same number of"
        " frames, spread over the whole clip, so a long clip plays faster than life. The column Speed says how much. A"
        " caption is a text file with the clip's name: castle.mp4 and castle.txt. A loss mask says where a clip trains,"
        " in white: castle.mask.png or castle.mask.mp4. In the table x leaves the clip under the cursor out of training"
        " (its files stay as they are) and takes it in again; Enter shows the first and the last frame that training"
        " takes, cropped as it crops them, with the caption to write. ✗ marks a file that cannot train, ⊘ one that is"
        " left out, ○ one that is held out of training to measure the loss (validation.fraction), ≈ a clip that is"
        " there twice. Esc stops looking at clips, l reads the folders again.",
    ),
    Step(
        "captions",
        "Trigger and captions",
        "Name the job, and say in words what the clips show. [trigger] in a caption becomes the trigger word.",
        "The trigger word is a made-up word (frung) that switches the LoRA on. Style and character LoRAs should have"
        " one; a motion LoRA usually needs none, because its captions name the motion. A clip without its own caption"
        " uses the default caption of its folder. Dropout leaves the caption out now and then, so that the LoRA also"
        " works on what it sees: 0.05 to 0.1. In the table Enter writes a clip's caption; t begins every caption that"
        " lacks the trigger word with [trigger], i writes one beside each clip that has none: both show first what they"
        " would write. z takes the last writing back.",
    ),
    Step(
        "settings",
        "Machine and settings",
        "Everything is set already; the first entry says for what. ^R puts a field back to its recommended value, u"
        " takes back the last change.",
        "The first entry shows the machine and why values differ from the plain defaults; the others are the panels of"
        " the job file. ◆ recommended: chosen for your kind, clips and machine, and the help below the form says why."
        " default: the plain default. ● yours: changed by you; ^R takes it back. Left and right change a choice, Enter"
        " lists all of them. What cannot be right is said under the field while you type.",
        hint_of_copy="Every value is the copied job's, also where this machine has another recommended. ^R puts a field"
        " to its recommended value, u takes back the last change.",
    ),
    Step(
        "prompts",
        "Sample prompts",
        "2 to 4 prompts like your clips, each with the image it starts from. ^F makes them of your clips.",
        "Previews show during training whether the LoRA has learned enough or too much; they do not change the"
        " training. Wan 2.2 I2V starts every video from an image, so each prompt needs its control image, like those"
        " you will use later; of a video, the first frame is taken. ^F makes prompts of your clips: their first frames"
        " and captions. What a LoRA makes of a clip that it trains on says little of others: ^\\ leaves such a clip out"
        " of training. You may skip this step: then checkpoints are saved without previews, and you judge them"
        " afterwards.",
    ),
    Step(
        "review",
        "Review and launch",
        "f fixes the highlighted finding, F all of them, Enter goes to its field, t shows the file. ^G launches.",
        "Errors (✗) would stop or spoil the run and must be fixed before the launch; warnings (!) are worth a thought;"
        " advice (i) is free. f applies the fix of the highlighted finding, F every fix there is, Enter goes to the"
        " field. The job file is plain TOML: keep it, edit it, start it again with `wanlora submit`. Launching writes"
        " it and hands it to the daemon; the training continues when you close this window.",
    ),
)
NAMES = tuple(s.name for s in STEPS)


def position(name: str) -> int:
    """The place of a step, 0 for the first; an unknown name (of another version's draft) is the first."""
    return NAMES.index(name) if name in NAMES else 0


def step_of_field(path: str) -> str:
    """The step on which the field (or file) that a finding names is edited, to jump there."""
    if path == "job.kind":
        return "kind"
    if (
        path.startswith(("/", "~"))
        or path == "datasets"
        or (path.startswith("datasets") and path.endswith((".path", "]")))
    ):
        return "clips"  # a clip or caption file, or the list of folders
    if path in ("job.name", "job.trigger") or path.endswith((".default_caption", ".caption_dropout")):
        return "captions"
    return "prompts" if path.startswith("sample.prompts") else "settings"
