"""Job files as they arrive: from Windows' editors, from other trainers, or no text at all. What they are is said by
name."""

import re
from typing import Any

from presets.errors import UserError

NEW_JOB = "Make one with: wanlora new --kind KIND --clips DIR, or with the wizard: wanlora"

# Keys that no wanlora job has at these places, each written by one trainer only.
_DIFFUSION_PIPE = {
    "micro_batch_size_per_gpu",
    "pipeline_stages",
    "activation_checkpointing",
    "checkpoint_every_n_minutes",
    "checkpoint_every_n_epochs",
    "adapter",
}
_DIFFUSION_PIPE_DATASET = {"directory", "enable_ar_bucket", "frame_buckets", "ar_buckets", "num_ar_buckets"}
_MUSUBI = {
    "dit",
    "dit_high_noise",
    "network_module",
    "network_args",
    "network_dim",
    "discrete_flow_shift",
    "timestep_boundary",
    "blocks_to_swap",
    "dataset_config",
}
_MUSUBI_DATASET = {
    "video_directory",
    "video_jsonl_file",
    "image_directory",
    "image_jsonl_file",
    "target_frames",
    "frame_extraction",
    "cache_directory",
}
_KOHYA_DATASET = {"subsets", "image_dir"}

_KEY = re.compile(r"""(?:^|[{,])[ \t]*(?:-[ \t]+)?["']?(\w+)["']?[ \t]*:""", re.MULTILINE)  # of YAML or JSON
_MUSUBI_COMMAND = re.compile(
    r"\bmusubi|\b\w+_train_network\.py\b|--(?:network_module|dit|dit_high_noise|dataset_config)\b"
)
_DIFFUSION_PIPE_COMMAND = re.compile(r"\bdeepspeed\b.*--config\b")
_SHELL = re.compile(r"\A#!|^[ \t]*(?:accelerate launch|python3? |deepspeed |export |source |cd )", re.MULTILINE)


def decoded(data: bytes, *, where: str) -> str:
    """The text of a file: UTF-8, with or without the mark that Windows' editors put before it. Raises UserError."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError("UTF-16 text, not UTF-8", where=where, fix="Save it as UTF-8")
    if b"\0" in data:
        raise UserError(
            "this is not text, so it is no job file", where=where, fix="Name a job file (.toml). " + NEW_JOB
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise UserError(f"not UTF-8 text (byte {e.start})", where=where, fix="Save it as UTF-8") from None


def other_text(text: str) -> str:
    """What to say of a text that is not TOML but another trainer's job or command, JSON, a shell script or YAML; ""
    where it may be meant as TOML."""
    return _not_ours(_text(text))


def other_tables(raw: dict[str, Any]) -> str:
    """What to say of the tables of a TOML file when they are another trainer's; "" otherwise. A file with a [job] table
    is ours."""
    return _not_ours(_tables(raw))


def _not_ours(what: str) -> str:
    return what and f"this is {what}, not a wanlora {'one' if what.endswith(' job') else 'job'}"


def _text(text: str) -> str:
    keys = set(_KEY.findall(text))
    if {"job", "config", "process"} <= keys:
        return "an ai-toolkit job"
    if _DIFFUSION_PIPE_COMMAND.search(text):
        return "a command of diffusion-pipe"
    if _MUSUBI_COMMAND.search(text):
        return "a command of musubi-tuner"
    if text.lstrip().startswith("{"):
        return "a JSON file"
    if _SHELL.search(text):
        return "a shell script"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if keys and not any("=" in line or line.startswith("[") for line in lines):
        return "a YAML file"
    return ""


def _tables(raw: dict[str, Any]) -> str:
    if isinstance(raw.get("job"), dict):
        return ""
    entries = raw["datasets"] if isinstance(raw.get("datasets"), list) else []
    in_datasets: set[str] = set().union(*(d for d in entries if isinstance(d, dict)))
    # musubi-tuner takes its options from tables of any name
    anywhere = set(raw).union(*(t for t in raw.values() if isinstance(t, dict)))
    if in_datasets & _MUSUBI_DATASET:
        return "a dataset of musubi-tuner"
    if in_datasets & _KOHYA_DATASET:
        return "a dataset of kohya's sd-scripts"
    if set(raw) & _DIFFUSION_PIPE or {"dataset", "output_dir"} <= set(raw):
        return "a diffusion-pipe job"
    if set(raw) & _DIFFUSION_PIPE_DATASET:
        return "a dataset of diffusion-pipe"
    return "a musubi-tuner job" if len(anywhere & _MUSUBI) >= 2 else ""


def escape(line: str) -> str:
    """What is wrong with a line of TOML that was refused, if a backslash in double quotes is: there it begins an
    escape. "" if none stands there."""
    for quoted in re.findall(r'"([^"\n]*)', line):
        rest = quoted.replace(r"\\", "")
        if wrong := re.search(r'\\(?![btnfr"]).?', rest) or re.search(r"\\.?", rest):
            doubled = re.sub(r"\\+", lambda run: r"\\" * len(run[0]), quoted)
            single = "" if "'" in quoted else f"Write it in single quotes: '{quoted}', or double"
            return (
                f"in double quotes a backslash begins an escape (here {wrong[0]}). {single or 'Double'} each backslash:"
                f' "{doubled}"'
            )
    return ""


def swallowed_escape(value: str) -> bool:
    """Whether a text is a Windows path whose backslashes were read as escapes: "C:\\new" is a drive, a line break and
    "ew"."""
    return re.match(r"[A-Za-z]:\S*[\b\t\n\f\r]", value) is not None
