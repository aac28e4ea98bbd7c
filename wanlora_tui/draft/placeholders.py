"""What an empty input of a field stands for. Recommended values are presets.recipes's."""

from presets.job.fields import field_of, parse_path
from presets.job.preview_settings import Sampling, preview_seed, sampling_of
from presets.job.schema import Job
from presets.job.toml_file import get_value
from wanlora_tui.output.formatting import shorten, value_text

# field that may be left out -> the one it then follows
COMMON = {
    "multistage.high.lr": "training.lr",
    "multistage.low.lr": "training.lr",
    "multistage.high.rank": "target.rank",
    "multistage.low.rank": "target.rank",
    "target.alpha": "target.rank",
    "target.layers.rank": "target.rank",
}


def placeholder(job: Job, path: str) -> str:
    """The common value where there is one; "" for a field that cannot be empty."""
    field, parts = field_of(path), parse_path(path)
    if field.default is not None:
        return ""
    if path.startswith("sample.") and parts[-1] in Sampling._fields:
        sampled = value_text(getattr(sampling_of(job.sample), str(parts[-1])))
        return f"left out: {shorten(sampled, 40) or 'empty'}"
    common = COMMON.get(field.path) or (f"sample.{parts[-1]}" if parts[1] == "prompts" else "")
    if not common:
        return "left out"
    if common == "sample.seed":
        assert isinstance(parts[2], int)
        return f"left out: {preview_seed(job.sample, parts[2])}"
    return f"left out: {value_text(get_value(job, common))}"
