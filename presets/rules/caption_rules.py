"""Rules about captions and the trigger word. How captions are read and filled in is presets.clips.captions's."""

from collections.abc import Iterator

from presets.clips.captions import TRIGGER_MARK, replace_word
from presets.clips.clip_facts import ClipFacts
from presets.clips.clip_statistics import usual_caption
from presets.facts.facts import Facts, names, paired
from presets.job.schema import Job, Kind
from presets.recipes.recipe import load_recipe
from presets.rules.registry import Found, rule

MAX_TOKENS = 512  # that the text encoder reads (engine.encode.text_embeddings)


def about_tokens(text: str) -> float:
    """How many tokens UMT5 makes of a text, by a cautious estimate: four letters of a Latin script each, or one and a
    half of another."""
    plain = sum(letter < "\u0250" for letter in text)
    return plain / 4 + (len(text) - plain) / 1.5


def suggest_default(kind: Kind, trigger: str, clips: list[ClipFacts]) -> str:
    """A default caption for clips of this kind: the recipe's own, or the one that most clips have; "" when only the
    user can say it."""
    recipe = load_recipe(kind).default_caption
    if recipe and (trigger or TRIGGER_MARK not in recipe):
        return recipe
    return usual_caption(clips)


@rule("caption-or-default", "error")
def caption_or_default(job: Job, facts: Facts) -> Iterator[Found]:
    """Every clip has a caption file, or its dataset a default caption."""
    for i, panel, found in paired(job, facts):
        bare = [c for c in found.clips if not c.has_caption]
        if not bare or panel.default_caption.strip() or panel.caption_dropout == 1 or job.training.unload_text_encoder:
            continue
        path = f"datasets[{i}].default_caption"
        message = (
            f"{names(bare)} have no caption (.txt of the same name), and there is no default caption to use instead"
        )
        suggestion = suggest_default(job.job.kind, job.job.trigger, found.clips)
        if suggestion:
            yield Found(path, message, set={path: suggestion})
        else:
            yield Found(
                path,
                message,
                fix=f'Write one, such as "{load_recipe(job.job.kind).caption}", into {path} or beside each clip',
            )


@rule("trigger-missing-in-captions", "warning")
def trigger_missing_in_captions(job: Job, facts: Facts) -> Iterator[Found]:
    """With a trigger word, every caption holds it or [trigger]."""
    trigger = job.job.trigger.strip()
    if not trigger or job.training.unload_text_encoder:
        return
    for i, panel, found in paired(job, facts):
        if panel.regularization:
            continue
        captioned = [(c, c.caption_or(panel.default_caption)) for c in found.clips]
        without = [
            c
            for c, text in captioned
            if text.strip() and not replace_word(text, trigger, "")[1] and TRIGGER_MARK not in text
        ]
        own = [c for c in without if c.has_caption]
        path = f"datasets[{i}].default_caption"
        if own:
            message = (
                f"the captions of {names(own)} name neither {trigger!r} nor {TRIGGER_MARK}: these clips teach the LoRA"
                " without its switch"
            )
            yield Found(f"datasets[{i}].path", message, fix=f"Begin these caption files with {TRIGGER_MARK}")
        if len(without) > len(own):
            message = (
                f"the default caption names neither {trigger!r} nor {TRIGGER_MARK}: clips that use it teach the LoRA"
                " without its switch"
            )
            yield Found(path, message, set={path: f"{TRIGGER_MARK}, {panel.default_caption.strip()}"})


@rule("trigger-placeholder-empty", "warning")
def trigger_placeholder_empty(job: Job, facts: Facts) -> Iterator[Found]:
    """[trigger] in captions or prompts has a trigger word to stand for."""
    if job.job.trigger.strip():
        return
    texts = [c.caption_or(panel.default_caption) for _, panel, found in paired(job, facts) for c in found.clips]
    texts += [d.default_caption for d in job.datasets] + [p.prompt for p in job.sample.prompts]
    if any(TRIGGER_MARK in text for text in texts):
        yield Found(
            "job.trigger",
            f"captions or prompts hold {TRIGGER_MARK}, but there is no trigger word, so it stands for nothing",
            fix="Set job.trigger to a made-up word",
        )


@rule("caption-cut", "warning")
def caption_cut(job: Job, facts: Facts) -> Iterator[Found]:
    """Captions and prompts fit the 512 tokens that the text encoder reads: what comes behind them is not learned."""
    long: dict[str, str] = {}
    if not job.training.unload_text_encoder:
        for i, _, found in paired(job, facts):
            if held := [c for c in found.clips if about_tokens(c.caption) > MAX_TOKENS]:
                long[f"datasets[{i}].path"] = f"the captions of {names(held)} are"
    texts = {
        f"datasets[{i}].default_caption": panel.default_caption
        for i, panel in enumerate(job.datasets)
        if not job.training.unload_text_encoder
    }
    texts |= {f"sample.prompts[{i}].prompt": prompt.prompt for i, prompt in enumerate(job.sample.prompts)} | {
        "sample.negative": job.sample.negative or ""
    }
    long |= {path: "the text is" for path, text in texts.items() if about_tokens(text) > MAX_TOKENS}
    for path, what in long.items():
        message = (
            f"{what} longer than the {MAX_TOKENS} tokens (about 2,000 letters) that the text encoder reads: the end is"
            " cut off"
        )
        yield Found(path, message, fix="Shorten it to a few sentences, the most important first")


@rule("unload-te-with-captions", "warning")
def unload_te_with_captions(job: Job, facts: Facts) -> Iterator[Found]:
    """Unload text encoder is for trigger-only training: captions are not used under it."""
    if not job.training.unload_text_encoder:
        return
    texts = {c.caption_or(p.default_caption).strip() for _, p, f in paired(job, facts) for c in f.clips} | {
        d.default_caption.strip() for d in job.datasets
    }
    texts -= {"", job.job.trigger.strip(), TRIGGER_MARK}
    if texts:
        yield Found(
            "training.unload_text_encoder",
            "only the trigger word is encoded, so what your captions say is not learned",
            set={"training.unload_text_encoder": False},
        )


@rule("text-cache-and-dropout", "warning")
def text_cache_and_dropout(job: Job, facts: Facts) -> Iterator[Found]:
    """Cached text embeddings go with caption dropout 0."""
    if job.training.cache_text_embeddings:
        for i, panel in enumerate(job.datasets):
            if panel.caption_dropout > 0:
                path = f"datasets[{i}].caption_dropout"
                message = (
                    f"captions are encoded once and meant to stay as they are, but {panel.caption_dropout:.0%} of the"
                    " time they are left out: with few clips some train mostly without text"
                )
                yield Found(path, message, set={path: 0.0})


@rule("text-cache-and-trigger", "warning")
def text_cache_and_trigger(job: Job, facts: Facts) -> Iterator[Found]:
    """Cached text embeddings go with captions that do not use [trigger]."""
    if not job.training.cache_text_embeddings:
        return
    texts = [c.caption_or(p.default_caption) for _, p, f in paired(job, facts) for c in f.clips] + [
        d.default_caption for d in job.datasets
    ]
    if any(TRIGGER_MARK in text for text in texts):
        message = (
            f"captions use {TRIGGER_MARK} and are encoded once: they keep the trigger word of that moment, also if you"
            " change it later"
        )
        yield Found(
            "training.cache_text_embeddings",
            message,
            fix="Set training.cache_text_embeddings = false, or write the trigger word into the captions",
            set={"training.cache_text_embeddings": False},
        )
