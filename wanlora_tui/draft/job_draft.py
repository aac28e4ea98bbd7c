"""The job being made, without any screen: the user's draft laid over what `presets.recipes.recommend` says.

No rule is decided here. Facts come in from outside (machine, scanned folders); the job comes out.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from presets.errors import JobError
from presets.findings import Finding
from presets.job.fields import FIELDS, PathPart, field_of, join_path, parse_path, toml_text
from presets.job.preview_settings import preview_seed
from presets.job.schema import Job, Kind, PromptPanel, suggested_name
from presets.job.toml_file import dump_job, get_value, job_from_dict, job_to_dict, parse_value
from wanlora_tui.draft import steps
from wanlora_tui.draft.draft_store import Draft, without_index
from wanlora_tui.output.formatting import value_text
from wanlora_tui.output.typed_paths import absolute

if TYPE_CHECKING:
    from presets.clips.clip_facts import DatasetFacts
    from presets.look import Look
    from presets.machine.machine import Machine
    from presets.recipes.recommend import Recommendation

# field that may be left out -> the one it then follows
COMMON = {
    "multistage.high.lr": "training.lr",
    "multistage.low.lr": "training.lr",
    "multistage.high.rank": "target.rank",
    "multistage.low.rank": "target.rank",
    "target.alpha": "target.rank",
    "sample.guidance_low": "sample.guidance",
}
PANELS = ("job", "model", "quantization", "multistage", "target", "save", "training", "advanced", "datasets", "sample")


class WizardState:
    """Draft, facts, and the job that follows from both."""

    def __init__(self, draft: Draft, cwd: Path) -> None:
        self.draft, self.cwd = draft, cwd
        self.machine: Machine | None = None
        self.scans: dict[str, DatasetFacts] = {}  # by absolute folder
        self.looks: dict[str, Look] = {}  # by absolute folder: those that are being scanned
        self.written: dict[Path, str] = {}  # job files that this wizard has written, and what is in them
        self._recommendations: list[Recommendation] = []  # over all clips first, then one per folder
        self._recommended: Job | None = None

    # Facts from outside

    def refresh(self) -> None:
        """Recommend anew, and no longer look at folders that were taken out; call after the kind, the folders, their
        scans or the machine have changed."""
        from presets.recipes.recommend import recommend

        self._recommendations, self._recommended = [], None
        self.scans = {folder: found for folder, found in self.scans.items() if folder in self.draft.folders}
        for folder in [f for f in self.looks if f not in self.draft.folders]:
            self.looks.pop(folder).end()
        if self.draft.kind is None or self.machine is None or not self.draft.folders:
            return
        name = suggested_name(self.draft.kind, Path(self.draft.folders[0]).name)
        found = [self.scans[f].clips if f in self.scans else [] for f in self.draft.folders]
        everything = [c for clips in found for c in clips]
        for clips, folder in [(everything, self.draft.folders[0]), *zip(found, self.draft.folders, strict=True)]:
            made = recommend(self.draft.kind, self.machine, clips, name=name, clips_path=folder)
            self._recommendations.append(made)
        first, *per_folder = self._recommendations
        tables = job_to_dict(first.job)
        tables["datasets"] = [
            job_to_dict(m.job)["datasets"][0] | {"path": folder}
            for m, folder in zip(per_folder, self.draft.folders, strict=True)
        ]
        tables["sample"]["prompts"] = []
        self._recommended = job_from_dict(tables)

    @property
    def ready(self) -> bool:
        """There is a job: kind, at least one folder and the machine are known."""
        return self._recommended is not None

    # The job

    def recommended_job(self) -> Job:
        """What the job would be if the user had changed no field."""
        assert self._recommended is not None, "no kind, folder or machine yet"
        return self._recommended

    def job(self) -> Job:
        """The recommended job with the user's values. Raises JobError when they cannot stand together in a job file."""
        tables = job_to_dict(self.recommended_job())
        for path, value in self.draft.values.items():
            _assign(tables, parse_path(path), value)
        tables["sample"]["prompts"] = msgspec.to_builtins(self.draft.prompts)
        return job_from_dict(tables)

    def written_job(self) -> Job:
        """The job as it goes into the file: paths below the file's folder are relative to it, so that both can move."""
        job, base = self.job(), self.job_path().parent

        def relative(path: str) -> str:
            return str(Path(path).relative_to(base)) if path and Path(path).is_relative_to(base) else path

        for dataset in job.datasets:
            dataset.path = relative(dataset.path)
        for prompt in job.sample.prompts:
            prompt.ctrl_img = relative(prompt.ctrl_img)
        job.model.path, job.model.vae, job.model.text_encoder = (
            relative(p) for p in (job.model.path, job.model.vae, job.model.text_encoder)
        )
        return job

    def job_path(self) -> Path:
        """Where the job file goes: as typed (relative to where wanlora was started), else NAME.toml there."""
        return self.cwd / (
            Path(self.draft.job_path).expanduser() if self.draft.job_path else f"{self.value('job.name')}.toml"
        )

    def wrote(self, path: Path) -> bool:
        """Whether the file there is one of this job: as it was written before, or just as it would be written now."""
        try:
            there = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return there in (self.written.get(path.absolute()), dump_job(self.written_job()))

    # Fields

    def value(self, path: str) -> Any:
        """The present value of a field; invalid typed text counts as not entered yet."""
        return get_value(self.job(), path)

    def recommended(self, path: str) -> tuple[Any, str | None]:
        """(value the field would have without the user, reason: "" for a plain default, None where only the user can
        say)."""
        if path.startswith("sample.prompts"):
            return ("", None) if path.endswith((".prompt", ".ctrl_img")) else (field_of(path).default, "")
        if path == "job.kind" or path.endswith("].path"):
            return self.value(path), None
        value = get_value(self.recommended_job(), path)
        parts = parse_path(path)
        made = self._recommendations[0]
        if parts[0] == "datasets" and isinstance(parts[1], int):
            made, parts[1] = self._recommendations[1 + parts[1]], 0
        return value, made.reasons.get(join_path(parts), "")

    def set_value(self, path: str, value: Any) -> None:
        """The user's choice for a field. Choosing what is recommended follows the recommendation again."""
        self.draft.typed.pop(path, None)
        parts = parse_path(path)
        if path == "job.kind":
            self.set_kind(value)
        elif parts[0] == "datasets" and parts[-1] == "path":
            assert isinstance(parts[1], int)
            self.draft.folders[parts[1]] = str(absolute(value, self.cwd))
            self.refresh()
        elif parts[:2] == ["sample", "prompts"] and len(parts) == 4:
            assert isinstance(parts[2], int)
            setattr(self.draft.prompts[parts[2]], str(parts[3]), value)
        elif self.recommended(path)[0] == value:
            self.draft.values.pop(path, None)
        else:
            self.draft.values[path] = value

    def set_typed(self, path: str, text: str) -> None:
        """Text that is no valid value: kept as typed, and refused by `findings` until it is mended."""
        self.draft.typed[path] = text

    def set_kind(self, kind: Kind) -> None:
        self.draft.kind = kind
        self.refresh()

    def add_folder(self, folder: Path) -> str:
        """Add a dataset; returns what is wrong, "" when it was added."""
        if str(folder) in self.draft.folders:
            return f"{folder} is in the list already"
        if not folder.is_dir():
            return f"{folder} is not a folder" if folder.exists() else f"No such folder: {folder}"
        self.draft.folders.append(str(folder))
        self.refresh()
        return ""

    def remove_folder(self, index: int) -> None:
        self.draft.folders.pop(index)
        self.draft.values = without_index(self.draft.values, "datasets", index)
        self.draft.typed = without_index(self.draft.typed, "datasets", index)
        self.refresh()

    def add_prompt(self) -> None:
        """A new prompt row; the first starts with how the clips are captioned, the way previews should be worded."""
        self.draft.prompts.append(PromptPanel(prompt=self.likely_prompt()))

    def likely_prompt(self) -> str:
        used = {p.prompt for p in self.draft.prompts}
        own = [c.caption for f in self.draft.folders if f in self.scans for c in self.scans[f].clips if c.has_caption]
        defaults = [d.default_caption for d in self.job().datasets]
        return next((c for c in [*own, *defaults] if c and c not in used), "")

    def remove_prompt(self, index: int) -> None:
        self.draft.prompts.pop(index)
        self.draft.typed = without_index(self.draft.typed, "sample.prompts", index)

    def reasons(self) -> list[tuple[str, Any, str]]:
        """(field path, recommended value, reason) of every field whose recommendation has one."""
        out = []
        for panel in PANELS:
            for path in self.fields(panel):
                value, reason = self.recommended(path)
                if reason:
                    out.append((path, value, reason))
        return out

    def fields(self, panel: str) -> list[str]:
        """Field paths of one panel's form, in the order of the job file; one set per dataset, one per prompt, one per
        expert."""
        if panel == "datasets":
            return [
                f.path.replace("datasets.", f"datasets[{i}].")
                for i in range(len(self.draft.folders))
                for f in FIELDS.values()
                if f.panel == panel
            ]
        if panel == "sample.prompts":
            return [path for i in range(len(self.draft.prompts)) for path in self.prompt_fields(i)]
        return [f.path for f in FIELDS.values() if f.panel in (panel, f"{panel}.high", f"{panel}.low")]

    def prompt_fields(self, index: int) -> list[str]:
        """Field paths of one prompt: its text and image, then what it may have of its own."""
        return [
            f.path.replace("sample.prompts.", f"sample.prompts[{index}].")
            for f in FIELDS.values()
            if f.panel == "sample.prompts"
        ]

    def placeholder(self, path: str) -> str:
        """What an empty input of the field stands for: the common value where there is one."""
        field, parts = field_of(path), parse_path(path)
        if field.default is not None:
            return ""
        common = COMMON.get(field.path) or (f"sample.{parts[-1]}" if parts[1] == "prompts" else "")
        if not common:
            return "left out"
        if common == "sample.seed":
            assert isinstance(parts[2], int)
            return f"left out: {preview_seed(self.job().sample, parts[2])}"
        return f"left out: {value_text(self.value(common))}"

    def changed(self, panel: str) -> int:
        """How many fields of a panel the user has set."""
        return sum(1 for path in {*self.draft.values, *self.draft.typed} if str(parse_path(path)[0]) == panel)

    # Findings

    def findings(self) -> list[Finding]:
        """What only the wizard can know: text that was typed and is no value of its field."""
        out = []
        for path, text in self.draft.typed.items():
            try:
                parse_value(path, text)
                continue
            except JobError as e:
                problem = e.problems[0].partition(": ")[2]
            value = self.recommended(path)[0]
            fix = f"Correct it, or take the recommended {toml_text(value)}"
            out.append(
                Finding(
                    code="not-a-value",
                    severity="error",
                    field=path,
                    message=problem[0].upper() + problem[1:],
                    fix=fix,
                    set={path: value},
                )
            )
        return out

    def apply(self, findings: list[Finding]) -> list[str]:
        """Apply fixes; returns what was set, as `path = value`. Of two fixes for one field the first counts."""
        done: dict[str, Any] = {}
        for finding in findings:
            if not done.keys() & finding.set.keys():
                for path, value in finding.set.items():
                    self.set_value(path, value)
                    done[path] = value
        return [f"{path} = {toml_text(value)}" for path, value in done.items()]

    def path_problem(self) -> str:
        """Why the job file cannot be written where it should go; "" when it can."""
        path = self.job_path()
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if path.is_dir():
            return f"{path} is a folder: add a file name"
        if not folder.is_dir():
            return f"{folder} is a file, not a folder"
        try:
            with tempfile.TemporaryFile(dir=folder):  # permission bits lie on read-only disks and for root
                return ""
        except OSError as e:
            return f"nothing can be written in {folder} ({(e.strerror or str(e)).lower()}): choose another place"

    # Steps

    def blocked(self, step: str) -> str:
        """Why the step after `step` cannot be entered yet; "" when it can."""
        if step == "kind" and self.draft.kind is None:
            return "Choose what the LoRA should teach first"
        if step == "clips" and not self.draft.folders:
            return "Add a folder of clips first: type its path and press Enter, or browse with F4"
        if step == "clips" and self.machine is None:
            return "Still reading the machine: one moment"
        return ""

    def furthest(self, name: str) -> str:
        """The step `name`, or the first one before it that is not filled in yet."""
        for step in steps.NAMES[: steps.position(name)]:
            if self.blocked(step):
                return step
        return steps.NAMES[steps.position(name)]


def _assign(tables: Any, parts: list[PathPart], value: Any) -> None:
    *parents, last = parts
    for part in parents:
        tables = tables[part]
    if value is None:
        tables.pop(last, None)
    else:
        tables[last] = value
