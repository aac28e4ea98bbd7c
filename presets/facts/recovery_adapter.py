"""What an accuracy recovery adapter says of itself, in its name and its header: whether `wanlora ara` made it and for
which base, or for which model and which 4-bit weights it was published. No weight is read.

The published ones carry nothing but a name (`wan22_14b_i2v_torchao_uint4.safetensors`), and ai-toolkit's metadata at
most. Adapters of Wan 2.2 T2V have the same shapes, so the name is all that tells them apart. The factors themselves are
read by `engine.adapters.recovery_file`.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct

from presets.base.composition import compose
from presets.base.layouts import EXPERT_PART, names_in, stored_files
from presets.base.safetensors_header import Damaged, json_object, read_header
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.file_names import expanded
from presets.files import identity
from presets.job.expert_schedule import Expert, needed_experts
from presets.job.schema import Job

SaidGrid = Literal["qint4", "uint4"]
FIELD = "quantization.ara"
BUILD = "build one for this base with: wanlora ara"
PUBLISHED = "ostris/accuracy_recovery_adapters/wan22_14b_i2v_torchao_uint4.safetensors"
GIVE = f"Give one for Wan 2.2 I2V A14B, such as {PUBLISHED}, or {BUILD}"
FINGERPRINT = "wanlora.ara.fingerprint"  # of the grid that it was calibrated on
BASE_IDENTITY = "wanlora.base_identity."  # followed by the expert
EXACT_TYPES = ("BF16", "F16", "F32", "F64", "")  # of weights that nobody has quantized, or that are not known
# metadata that names a model: ai-toolkit's and kohya's, and what modelspec asks for
MODEL_KEYS = ("ss_base_model_version", "modelspec.architecture")

_TASKS = {
    "t2i": "text-to-image",
    "t2v": "text-to-video",
    "ti2v": "the 5B model",
    "s2v": "speech-to-video",
    "flf2v": "Wan 2.1",
    "vace": "VACE",
    "animate": "Wan Animate",
}
_TASK = re.compile(rf"(?<![a-z])({'|'.join(_TASKS)})(?![a-z])")
_VERSION = re.compile(r"wan[ _.-]?v?(\d)[ ._-]?(\d)(?!\d|b)")
_SIZE = re.compile(r"(?<!\d)(?<!\d\.)(5|1[._]3)b(?![a-z0-9])")
_FAMILY = re.compile(r"(?<![a-z])(qwen|flux|hunyuan|hidream|ltx|chroma|sdxl|z[ _-]?image|lumina|omnigen)")


class RecoveryAdapter(Struct, frozen=True):
    """One adapter's file, as far as its name and header tell."""

    where: str  # its path, or owner/repository/file on the Hub
    metadata: dict[str, str]  # {} while it is on the Hub

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]

    @property
    def ours(self) -> bool:
        """`wanlora ara` made it, on weights as they were stored; a published one assumes weights rounded to bf16."""
        return FINGERPRINT in self.metadata

    def grid(self) -> SaidGrid | None:
        """The 4-bit weights that it corrects; None when neither metadata nor name says. Raises UserError for such as
        are not offered."""
        said = self.metadata.get("wanlora.ara.grid") or (re.search(r"uint\d", self.name) or [""])[0]
        if not said:
            return None
        for grid in get_args(SaidGrid):
            if said == grid:
                return said  # type: ignore[return-value]
        raise UserError(
            f"corrects weights in {said}, which is not offered here",
            where=self.where,
            fix=f"Give an adapter for 4 bits (uint4), or {BUILD}",
        )

    def require_this_model(self) -> None:
        """Raises UserError when its name or its metadata is that of another model than Wan 2.2 I2V A14B."""
        if self.ours:  # its name is the user's; the base's identity tells
            return
        said = {f"its name ({self.name})": Path(self.name).stem}
        said |= {f"its metadata ({k} = {v!r})": v for k, v in self.metadata.items() if k in MODEL_KEYS}
        for by, text in said.items():
            if other := other_model(text):
                raise UserError(
                    f"is for another model ({other}) by {by}: on Wan 2.2 I2V A14B it would only add noise",
                    where=self.where,
                    fix=GIVE,
                )

    def require_base(self, identities: Mapping[Expert, str]) -> None:
        """Raises UserError when it was built for other weights than those of these experts."""
        if any(self.metadata.get(f"{BASE_IDENTITY}{e}", own) != own for e, own in identities.items()):
            raise UserError("was built for another base model", where=self.where, fix=f"{BUILD[0].upper()}{BUILD[1:]}")


def other_model(text: str) -> str:
    """Which model but Wan 2.2 I2V A14B a name is that of; "" when nothing in it speaks against that one."""
    text = text.lower()
    if (version := _VERSION.search(text)) and version.groups() != ("2", "2"):
        return f"Wan {version[1]}.{version[2]}"
    if _SIZE.search(text):
        return "a smaller model"
    if "wan" not in text and (family := _FAMILY.search(text)):
        return family[1]
    task = _TASK.search(text)
    return _TASKS[task[1]] if task and not re.search(r"(?<![a-z])i2v", text) else ""


def adapter_path(text: str, base: Path) -> Path | None:
    """The file that `quantization.ara` names (relative paths start at `base`); None where that is a file on the Hub,
    `owner/repository/file.safetensors`. Raises UserError."""
    path = (base / expanded(text)).resolve()
    if path.is_file():
        return path
    parts = text.split("/")
    if (
        len(parts) < 3
        or not all(re.fullmatch(r"[\w.-]+", part, re.ASCII) and part.strip(".") for part in parts)
        or not text.endswith(".safetensors")
    ):
        raise UserError(
            f"no such file (looked for {path})",
            where=f"{FIELD} = {text!r}",
            fix="Give a .safetensors file, or owner/repository/file.safetensors on the Hub",
        )
    return None


def read_adapter(path: Path) -> RecoveryAdapter:
    """Raises UserError for a file that is no safetensors file."""
    try:
        read_header(path)  # is it whole?
        with path.open("rb") as f:
            said = json_object(f.read(int.from_bytes(f.read(8), "little"))).get("__metadata__")
    except OSError as e:
        raise UserError(f"cannot be read ({(e.strerror or str(e)).lower()})", where=str(path), fix=GIVE) from None
    except Damaged as e:
        raise UserError(e.what, where=str(path), fix=e.fix) from None
    metadata = {k: v for k, v in said.items() if isinstance(v, str)} if isinstance(said, dict) else {}
    return RecoveryAdapter(str(path), metadata)


def adapter_of(job: Job, base: Path) -> RecoveryAdapter:
    """That of a job, of which nothing but the name is known while it is on the Hub. Raises UserError where the job
    names none, or one that cannot be used whatever the base is."""
    text = job.quantization.ara
    if not text:
        raise UserError(
            "qint4+ara needs an adapter",
            where=FIELD,
            fix=f"Name one, such as {PUBLISHED}, or build it with wanlora ara",
        )
    path = adapter_path(text, base)
    found = RecoveryAdapter(text, {}) if path is None else read_adapter(path)
    found.require_this_model()
    found.grid()
    return found


def check_base_of(found: RecoveryAdapter, job: Job, facts: Facts) -> None:
    """Whether it was built for the base that the job names, as far as that is on this machine. Raises UserError."""
    if facts.named is None or not any(key.startswith(BASE_IDENTITY) for key in found.metadata):
        return
    places = compose(facts.named, facts.base).places
    identities: dict[Expert, str] = {}
    for expert in needed_experts(job):
        place = places.get(EXPERT_PART[expert])
        if place is None or place.at is None or place.root is None or place.spot is None:
            continue
        try:
            files = (
                [place.spot.path]
                if place.spot.single
                else stored_files(place.part, place.root, place.spot.path, names_in(place.root))
            )
            identities[expert] = identity([place.root / name for name in files], times=False)
        except (OSError, Damaged):  # the base's own findings say so
            continue
    found.require_base(identities)


def quantized_base(found: RecoveryAdapter, types: Iterable[str]) -> str:
    """What is to be said of a published adapter on experts whose weights were quantized before (`types`: how each is
    stored); "" where nothing is."""
    stored = list(dict.fromkeys(t for t in types if t not in EXACT_TYPES))
    if found.ours or found.grid() == "qint4" or not stored:
        return ""
    return (
        f"{found.name} was made for weights quantized from bf16, and this base is stored as {' and '.join(stored)},"
        " which is rounded already: the adapter then repairs less than it could"
    )
