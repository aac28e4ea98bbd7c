"""Which clips previews start from."""

from pathlib import Path

import msgspec

from presets.clips.clip_facts import ClipFacts, DatasetFacts
from presets.job.schema import DatasetPanel
from presets.recipes.clip_prompts import clip_prompts
from tests.helpers.facts import clip, clips, image


def dataset(found: list[ClipFacts], **panel) -> tuple[DatasetPanel, DatasetFacts]:
    return DatasetPanel(path="/clips", **panel), DatasetFacts(path="/clips", clips=found, problems=[])


def chosen(datasets: list[tuple[DatasetPanel, DatasetFacts]], number: int, used: set[str] | None = None) -> list[str]:
    return [Path(p.ctrl_img).name for p in clip_prompts(datasets, number, used or set())]


def test_they_are_spread_over_the_clips_and_say_their_captions():
    many = [clip(f"{i:02}.mp4", caption=f"orbit {i}") for i in range(10)]
    made = clip_prompts([dataset(many)], 2)
    assert [(p.prompt, p.ctrl_img) for p in made] == [("orbit 2", "/clips/02.mp4"), ("orbit 7", "/clips/07.mp4")]
    assert chosen([dataset(many)], 3) == ["01.mp4", "05.mp4", "08.mp4"]
    assert chosen([dataset(many)], 0) == [] and chosen([dataset(many[:1])], 2) == ["00.mp4"]
    assert chosen([dataset(many)], 2, {"/clips/02.mp4"}) == ["03.mp4", "07.mp4"]


def test_datasets_take_turns():
    one, two = ([clip(f"{name}{i}.mp4") for i in range(4)] for name in "ab")
    assert chosen([dataset(one), dataset(two)], 3) == ["a0.mp4", "b0.mp4", "a2.mp4"]
    assert chosen([dataset(one, regularization=True), dataset(two)], 2) == ["b1.mp4", "b3.mp4"]
    assert chosen([dataset(one[:1]), dataset(two)], 3) == ["a0.mp4", "b0.mp4", "b2.mp4"]


def test_a_clip_has_words_and_pictures_come_last():
    bare = clip("bare.mp4", caption="")
    assert chosen([dataset([bare, *clips(1)])], 2) == ["00.mp4"]
    assert chosen([dataset([bare])], 2) == []
    assert clip_prompts([dataset([bare], default_caption="[trigger] walks")], 1)[0].prompt == "[trigger] walks"
    assert chosen([dataset([image(), *clips(1)])], 2) == ["00.mp4"]
    assert chosen([dataset([image()])], 2) == ["a.png"]
    assert chosen([dataset([msgspec.structs.replace(clip(), height=8)])], 2) == [], "smaller than a patch"
