"""What a draft follows where its user has chosen nothing: a job recommended for its clips, machine and starts.

With thousands of clips that takes longer than a key may, so it can be asked in a thread, of a `Basis` that stays as it
is. The values themselves are presets.recipes's, the draft wanlora_tui.draft.job_draft's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from presets.job.fields import PathPart, parse_path
from presets.job.schema import Job, Kind, suggested_name
from presets.job.toml_file import job_from_dict, job_to_dict
from wanlora_tui.draft.chosen_loras import ranks_of_starts

if TYPE_CHECKING:
    from presets.clips.clip_facts import ClipFacts, DatasetFacts
    from presets.machine.machine import Machine
    from presets.recipes.recommend import Recommendation


class Basis(NamedTuple):
    """All that a recommendation depends on."""

    kind: Kind
    machine: "Machine"
    folders: tuple[str, ...]
    found: tuple["DatasetFacts | None", ...]  # what lies in each and is not left out; None while it is not known
    starts: Mapping[str, Any]  # the fields of LoRAs to start from, as chosen
    base: Path  # where paths of the job begin

    def same(self, other: "Basis | None") -> bool:
        """Whether it is of the very same facts; those of clips are compared by identity, for there may be many."""
        return (
            other is not None
            and (self.kind, self.folders, self.starts, self.base)
            == (other.kind, other.folders, other.starts, other.base)
            and self.machine is other.machine
            and all(one is two for one, two in zip(self.found, other.found, strict=True))
        )


class Recommended(NamedTuple):
    basis: Basis
    job: Job
    of: "list[Recommendation]"  # over all clips first, then one per folder
    start_reasons: dict[str, str]  # of what follows from the LoRAs that the job starts from


class Recommender:
    """Remembers what was recommended for the clips of each folder until those, or what else counts, change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Basis, Recommendation]] = {}  # by folder, "" for all together

    def recommend(self, basis: Basis) -> Recommended:
        name = suggested_name(basis.kind, Path(basis.folders[0]).name)
        clips = [found.clips if found is not None else [] for found in basis.found]
        of = []
        for i, folder in enumerate(basis.folders):
            part = basis._replace(folders=(folder, name), found=(basis.found[i],), starts={}, base=Path())
            of.append(self._made(folder, part, name, clips[i]))
        if len(of) == 1:
            first = of[0]
        else:
            whole = basis._replace(starts={}, base=Path())
            first = self._made("", whole, name, [clip for each in clips for clip in each])
        self._known = {key: known for key, known in self._known.items() if key in ("", *basis.folders)}
        tables = job_to_dict(first.job)
        tables["datasets"] = [
            job_to_dict(made.job)["datasets"][0] | {"path": folder}
            for made, folder in zip(of, basis.folders, strict=True)
        ]
        tables["sample"]["prompts"], tables["target"]["layers"] = [], []
        reasons = {}
        for path, (rank, reason) in ranks_of_starts(job_from_dict(tables), basis.starts, basis.base).items():
            assign(tables, parse_path(path), rank)
            reasons[path] = reason
        return Recommended(basis, job_from_dict(tables), [first, *of], reasons)

    def _made(self, key: str, part: Basis, name: str, clips: "list[ClipFacts]") -> "Recommendation":
        from presets.recipes.recommend import recommend

        known = self._known.get(key)
        if known is not None and part.same(known[0]):
            return known[1]
        made = recommend(part.kind, part.machine, clips, name=name, clips_path=key or part.folders[0])
        self._known[key] = part, made
        return made


def assign(tables: Any, parts: list[PathPart], value: Any) -> None:
    """Set a field of a job's plain tables; None takes it out."""
    *parents, last = parts
    for part in parents:
        tables = tables[part]
    if value is None:
        tables.pop(last, None)
    else:
        tables[last] = value
