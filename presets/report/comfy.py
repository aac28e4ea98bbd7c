"""How to use the LoRAs of a run in ComfyUI: which file goes to which of the two loaders, how strongly, with which
words."""

from presets.clips.captions import fill_trigger
from presets.job.expert_schedule import EXPERTS, Expert
from presets.report.best import Choice
from presets.report.markup import Markup, element, joined
from presets.report.run_reader import StoredRun

LOADER = "LoraLoaderModelOnly"
MODELS: dict[Expert, str] = {"high_noise": "wan2.2_i2v_high_noise_14B", "low_noise": "wan2.2_i2v_low_noise_14B"}


def how_to_use(run: StoredRun, best: Choice | None) -> Markup:
    """What to do, step by step; where there is no LoRA file yet, that."""
    if best is None:
        if run.view.checkpoints:
            return element("p", "Its LoRA files do not lie here any more.")
        return element("p", "There are no LoRA files yet: the first come with the first checkpoint.")
    missing = [expert for expert in EXPERTS if expert not in best.files]
    steps = [
        element(
            "li",
            "Put ",
            joined(*(element("code", file) for file in best.files.values()), by=" and "),
            " into ",
            element("code", "ComfyUI/models/loras"),
            ".",
        ),
        element(
            "li", "Open the template “Wan 2.2 14B Image to Video”. It loads two models, and each takes its own LoRA:"
        ),
        *(_loader(expert, file) for expert, file in best.files.items()),
    ]
    if missing and best.files:
        words = " and ".join(expert.replace("_", "-") for expert in missing)
        steps.append(element("li", f"The {words} model stays as it is: no LoRA of it was made."))
    steps.append(
        element(
            "li",
            "Begin with strength 1 at both. Too strong, and motion or look gets stiff: try 0.7 to 0.9. Too weak, and"
            " the high-noise LoRA may take up to 1.2. Where 4-step LoRAs are loaded too, ours stand beside them in the"
            " same chain.",
        )
    )
    steps.append(element("li", *_words(run)))
    return joined(element("p", element("b", f"Step {best.step:,}"), f": {best.reason}."), element("ol", *steps))


def _loader(expert: Expert, file: str) -> Markup:
    return element(
        "li",
        f"{expert.replace('_', ' ').capitalize()}: behind ",
        element("code", MODELS[expert]),
        f" put a {LOADER} with ",
        element("code", file.rpartition("/")[2]),
        ".",
    )


def _words(run: StoredRun) -> list[str]:
    trigger = run.job.job.trigger
    prompts = [fill_trigger(panel.prompt, trigger) for panel in run.job.sample.prompts]
    example = ["Prompts like those of the previews work: ", element("code", prompts[0]), "."] if prompts else []
    if trigger:
        return ["Put the trigger phrase ", element("code", trigger), " into the prompt. ", *example]
    return ["It has no trigger word: the prompt says what the captions said. ", *example]
