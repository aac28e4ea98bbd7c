"""Previews that start from clips of the job being made, and whether those clips train. Which clips are taken is
presets.recipes.clip_prompts's; the draft's other fields are job_draft's."""

from pathlib import Path

from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.typed_paths import at


def add_clip_prompts(state: WizardState) -> int:
    """Prompts that start from first frames of clips, two at first and then one more each time; how many there were to
    add."""
    from presets.recipes.clip_prompts import USUAL, clip_prompts

    prompts = state.draft.prompts
    used = {str(_absolute(state, prompt.ctrl_img)) for prompt in prompts if prompt.ctrl_img}
    datasets = [
        (panel, state.scans[folder])
        for panel, folder in zip(state.job().datasets, state.draft.folders, strict=True)
        if folder in state.scans
    ]
    made = clip_prompts(datasets, 1 if prompts else USUAL, used)
    prompts += made
    return len(made)


def clip_of(state: WizardState, index: int) -> tuple[int, str] | None:
    """(dataset, name in its folder) of the clip that a prompt starts from; None when it is no clip of a dataset."""
    image = state.draft.prompts[index].ctrl_img
    path = _absolute(state, image)
    for i, folder in enumerate(state.draft.folders):
        scan = state.scans.get(folder)
        if image and scan and any(clip.path == str(path) for clip in scan.clips):
            return i, path.relative_to(scan.path).as_posix()
    return None


def is_held_out(state: WizardState, index: int) -> bool:
    """Whether the clip that a prompt starts from is left out of training."""
    clip = clip_of(state, index)
    return clip is not None and clip[1] in state.value(f"datasets[{clip[0]}].exclude")


def hold_out(state: WizardState, index: int) -> bool:
    """Leave the clip that a prompt starts from out of training, or take it in again. False: it starts from none."""
    clip = clip_of(state, index)
    if clip is None:
        return False
    path = f"datasets[{clip[0]}].exclude"
    names = state.value(path)
    state.set_value(path, [n for n in names if n != clip[1]] if clip[1] in names else [*names, clip[1]])
    return True


def _absolute(state: WizardState, path: str) -> Path:
    return at(path, state.job_path().parent)
