"""Prompts for previews, made of the clips: each starts from a clip's first frame and says its caption. What else is
recommended for a job is presets.recipes.recommend's."""

from collections.abc import Collection, Sequence
from itertools import zip_longest

from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.clips.geometry import SIDE_MULTIPLE
from presets.job.schema import DatasetPanel, PromptPanel

USUAL, MOST = 2, 3  # prompts that are made of clips: each preview takes minutes


def clip_prompts(
    datasets: Sequence[tuple[DatasetPanel, DatasetFacts]], number: int, used: Collection[str] = ()
) -> list[PromptPanel]:
    """Up to `number` prompts, the same for the same clips: by turns from each dataset, spread evenly over its clips in
    the order of their names. Control images are absolute paths.

    Taken are clips with a caption (their own or the default one) and videos before images; not regularization, and none
    whose path is `used`. Fewer, or none, where there are no more.
    """
    spread = [
        [
            PromptPanel(prompt=clip.caption_or(panel.default_caption), ctrl_img=clip.path)
            for clip in _evenly(_suitable(panel, found, used), number)
        ]
        for panel, found in datasets
        if not panel.regularization
    ]
    return [prompt for turn in zip_longest(*spread) for prompt in turn if prompt is not None][:number]


def _suitable(panel: DatasetPanel, found: DatasetFacts, used: Collection[str]) -> list[ClipFacts]:
    clips = [
        c
        for c in found.clips
        if c.path not in used
        and c.caption_or(panel.default_caption).strip()
        and min(c.width, c.height) >= SIDE_MULTIPLE
    ]
    return [c for c in clips if c.kind == "video"] or clips


def _evenly(clips: list[ClipFacts], number: int) -> list[ClipFacts]:
    """The middle one of each of `number` equal parts."""
    if len(clips) <= number:
        return clips
    return [clips[(2 * i + 1) * len(clips) // (2 * number)] for i in range(number)]
