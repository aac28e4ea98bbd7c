"""Whether the numbers in the LoRA files that a job names are numbers: each file is read through once, until it changes.
What their headers say is `presets.facts.loras`'s; engine.adapters.lora_reader refuses the same when a run begins."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from presets.base.lora_file import parse_key, read_lora
from presets.base.lora_metadata import read_scales
from presets.base.safetensors_header import TensorPlace, read_header
from presets.errors import UserError
from presets.facts.loras import START_FIELDS, find_start, lora_at, start_of
from presets.file_names import expanded
from presets.job.expert_schedule import EXPERTS
from presets.job.schema import Job
from presets.look import Look

CHUNK = 2**24  # bytes
# type -> the bits of a number's exponent; with all of them set it is infinite or none. Of E4M3 (without infinities) the
# mantissa's, too
EXPONENTS = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
_FILES_KEPT = 64

_known: dict[tuple[str, int, int], str] = {}  # (path, size, time of change) -> what is wrong


def loras_of(job: Job, base: Path) -> dict[str, Path]:
    """Field -> the LoRA file that it names, of those that can be found: starts, merges, accelerators."""
    named: dict[str, Path] = {}
    for expert in EXPERTS:
        if text := start_of(job, expert):
            try:
                named[START_FIELDS[expert]] = find_start(text, expert, base).file
            except UserError:  # a rule says so
                continue
    texts = {f"model.merge[{i}].path": panel.path for i, panel in enumerate(job.model.merge)}
    if job.sample.prompts:
        texts |= {"sample.accelerator": job.sample.accelerator, "sample.accelerator_low": job.sample.accelerator_low}
    named |= {field: lora_at(base / expanded(text)) for field, text in texts.items() if text.strip()}
    return {field: path for field, path in named.items() if path.is_file()}


def look_at_loras(job: Job, base: Path, look: Look) -> dict[str, str]:
    """Path -> what is wrong with the numbers in this LoRA file; "" where nothing is, or rules already refuse it. Raises
    LookEnded."""
    return {str(path): _look_at(path, look) for path in dict.fromkeys(loras_of(job, base).values())}


def _look_at(path: Path, look: Look) -> str:
    try:
        status = path.stat()
        key = str(path), status.st_size, status.st_mtime_ns
        if key not in _known:
            found = _problem(path, look)
            if len(_known) >= _FILES_KEPT:
                _known.clear()
            _known[key] = found
        return _known[key]
    except (UserError, OSError):
        return ""


def _problem(path: Path, look: Look) -> str:
    left_out = set(read_lora(path).image)
    try:
        read_scales(path)
    except UserError as e:
        return e.what
    for name, place in read_header(path).items():
        key = parse_key(name)
        assert key is not None, "read_lora lets no other pass"
        if name in left_out:
            continue
        if place.dtype not in EXPONENTS:
            if key.kind != "alpha":  # kohya's trainers write integers there
                return f"{name} holds {place.dtype} numbers, which are not read"
        elif not _all_finite(path, place, look):
            return f"{name} holds numbers that are not finite"
    return ""


def _all_finite(path: Path, place: TensorPlace, look: Look) -> bool:
    with path.open("rb") as f:
        f.seek(place.begin)
        for begin in range(0, place.size, CHUNK):
            look.raise_if_ended()
            if not _finite(f.read(min(CHUNK, place.size - begin)), place.dtype):
                return False
    return True


def _finite(raw: bytes, dtype: str) -> bool:
    bits = EXPONENTS[dtype]
    unsigned = f"<u{1 if dtype.startswith('F8') else 2 if dtype == 'BF16' else int(dtype[1:]) // 8}"
    values: NDArray[np.unsignedinteger] = np.frombuffer(raw, unsigned)
    mask = values.dtype.type(bits)
    return not bool(((values & mask) == mask).any())
