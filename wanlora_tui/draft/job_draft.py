"""The job being made, without any screen: the user's draft laid over what `presets.recipes.recommend` says.

No rule is decided here. Facts come in from outside (machine, scanned folders); the job comes out.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from daemon.settings import settings_file
from presets.errors import JobError
from presets.findings import Finding
from presets.job.fields import FIELDS, field_of, join_path, parse_path, toml_text
from presets.job.schema import Job, Kind, LayersPanel, MergePanel, PromptPanel
from presets.job.toml_file import dump_job, get_value, job_from_dict, job_to_dict, parse_value, relative_paths
from wanlora_tui.draft import steps
from wanlora_tui.draft.caption_history import CaptionHistory
from wanlora_tui.draft.chosen_loras import item_fields, merge_field, merge_fields
from wanlora_tui.draft.draft_store import Draft, without_index
from wanlora_tui.draft.placeholders import placeholder
from wanlora_tui.draft.recommending import Basis, Recommended, Recommender, assign
from wanlora_tui.output.typed_paths import absolute, at, write_problem

if TYPE_CHECKING:
    from presets.clips.clip_facts import DatasetFacts
    from presets.clips.likeness.alike import Twin
    from presets.look import Look
    from presets.machine.machine import Machine

SOME_LAYERS = "blocks.0-19"
PANELS = tuple(panel.name for panel in msgspec.structs.fields(Job))
NEEDED = ("job", "datasets")  # panels that no job is without


class WizardState:
    """Draft, facts, and the job that follows from both."""

    def __init__(self, draft: Draft, cwd: Path) -> None:
        self.draft, self.cwd = draft, cwd
        self.machine: Machine | None = None
        self.scans: dict[str, DatasetFacts] = {}  # by absolute folder
        self.looks: dict[str, Look] = {}  # by absolute folder: those that are being scanned
        self.extensions: dict[str, str] = {}  # by absolute folder: of captions, with which it is or was scanned
        self.unread: dict[str, str] = {}  # by absolute folder: why its look ended early; "": nobody wanted to wait
        self.twins: dict[str, dict[str, Twin]] = {}  # by absolute folder: path of a clip -> which others it is like
        self.held_out: dict[str, set[str]] = {}  # by folder as it was read: clips that measure the loss alone
        self.captions = CaptionHistory()
        self.written: dict[Path, str] = {}  # job files that this wizard has written, and what is in them
        self._recommended: Recommended | None = None
        self._recommender = Recommender()
        # what they follow, and they
        self._reasons: tuple[Recommended | None, dict[str, Any], list[tuple[str, Any, str]]] | None = None
        # what of the draft the job was made of, the job, its plain tables
        self._made: tuple[bytes, Job, dict[str, Any]] | None = None
        self._found: dict[str, tuple[DatasetFacts, list[str], DatasetFacts]] = {}  # by folder: scan, left out, the rest
        self.means: dict[str, str] = {}  # field that is left to the planner -> what it comes to, as last reckoned
        self.settings = settings_file()  # where the price of an hour stands

    # Facts from outside

    def refresh(self) -> None:
        """Recommend anew, and no longer look at folders that were taken out; call after the kind, the folders, their
        scans, the LoRAs to start from or the machine have changed."""
        self.scans = {folder: found for folder, found in self.scans.items() if folder in self.draft.folders}
        for folder in [f for f in self.looks if f not in self.draft.folders]:
            self.looks.pop(folder).end()
        basis = self.basis()
        self._recommended, self._made = (self._recommender.recommend(basis) if basis is not None else None), None

    def extension(self, index: int) -> str:
        """The end of caption files' names in a folder, "" for the usual ones."""
        return str(self.draft.values.get(f"datasets[{index}].caption_extension", ""))

    def drop_scan(self, folder: str) -> None:
        """What is or was read of a folder counts no more."""
        self.scans.pop(folder, None)
        if (look := self.looks.pop(folder, None)) is not None:
            look.end()

    def basis(self) -> Basis | None:
        """What is recommended depends on this; None while too little is known."""
        draft = self.draft
        if draft.kind is None or self.machine is None or not draft.folders:
            return None
        found = tuple(self.found(i) for i in range(len(draft.folders)))
        starts = {path: value for path, value in draft.values.items() if path.startswith("target.start_")}
        typed = at(draft.job_path, self.cwd).parent if draft.job_path else self.cwd
        return Basis(draft.kind, self.machine, tuple(draft.folders), found, starts, typed)

    @property
    def is_behind(self) -> bool:
        """What is recommended is for other clips than those that train now."""
        basis, known = self.basis(), self._recommended
        return basis is not None and not basis.same(known.basis if known is not None else None)

    def recommend(self, basis: Basis) -> Recommended:
        """What `refresh` would take in: for a thread, with `basis()` of before."""
        return self._recommender.recommend(basis)

    def take(self, made: Recommended) -> bool:
        """Follow what was recommended in a thread; False when the draft is another one by now."""
        basis = self.basis()
        if basis is None or not basis.same(made.basis):
            return False
        self._recommended, self._made = made, None
        return True

    def found(self, index: int) -> "DatasetFacts | None":
        """What lies in a folder and is not left out of training, once it is read."""
        from presets.clips.clip_facts import leave_out

        folder, names = self.draft.folders[index], self.draft.values.get(f"datasets[{index}].exclude", [])
        scan, known = self.scans.get(folder), self._found.get(folder)
        if scan is None:
            return None
        if known is None or known[0] is not scan or known[1] != names:
            known = self._found[folder] = scan, list(names), leave_out(scan, names)
        return known[2]

    @property
    def ready(self) -> bool:
        """There is a job: kind, at least one folder and the machine are known."""
        return self._recommended is not None

    # The job

    def recommended_job(self) -> Job:
        """What the job would be if the user had changed no field."""
        assert self._recommended is not None, "no kind, folder or machine yet"
        return self._recommended.job

    def job(self) -> Job:
        """The recommended job with the user's values: one for all until the draft changes, so nobody may change it.
        Raises JobError when they cannot stand together in a job file."""
        draft = self.draft
        made_of = msgspec.msgpack.encode((draft.values, draft.prompts, draft.merges, draft.layers))
        if self._made is None or self._made[0] != made_of:
            tables = self._tables()
            self._made = made_of, self._changed_to(tables), tables
        return self._made[1]

    def _changed_to(self, tables: dict[str, Any]) -> Job:
        """The job of these tables. A key changes one panel; the others are those of the job before."""
        if self._made is None:
            return job_from_dict(tables)
        _, job, before = self._made
        panels = [name for name in PANELS if tables.get(name) != before.get(name)]
        made = job_from_dict({name: tables[name] for name in {*NEEDED, *panels} if name in tables})
        return msgspec.structs.replace(job, **{name: getattr(made, name) for name in panels})

    def _tables(self) -> dict[str, Any]:
        tables = job_to_dict(self.recommended_job())
        for path, value in self.draft.values.items():
            assign(tables, parse_path(path), value)
        # where held-out clips have a folder of their own, none has to be taken out of training
        if tables["validation"]["path"].strip() and "validation.fraction" not in self.draft.values:
            tables["validation"]["fraction"] = 0.0
        tables["sample"]["prompts"] = msgspec.to_builtins(self.draft.prompts)
        tables["model"]["merge"] = [msgspec.to_builtins(m) for m in self.draft.merges if m.path.strip()]
        tables["target"]["layers"] = msgspec.to_builtins(self.draft.layers)
        return tables

    def written_job(self) -> Job:
        """The job as it goes into the file: paths below the file's folder are relative to it, so that both can move."""
        return relative_paths(job_from_dict(self._tables()), self.job_path().parent)

    def job_path(self) -> Path:
        """Where the job file goes: as typed (relative to where wanlora was started), else NAME.toml there."""
        return at(self.draft.job_path or f"{self.value('job.name')}.toml", self.cwd)

    def wrote(self, path: Path) -> bool:
        """Whether the file there is one of this job: as it was written before, or just as it would be written now."""
        try:
            there = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return there in (self.written.get(path.absolute()), dump_job(self.written_job()))

    # Fields

    def value(self, path: str, job: Job | None = None) -> Any:
        """The present value of a field; invalid typed text counts as not entered yet. `job`: for many in a row."""
        if (merge := merge_field(path)) is not None:
            index, name = merge
            return getattr(self.draft.merges[index] if index < len(self.draft.merges) else MergePanel(), name)
        return get_value(job or self.job(), path)

    def recommended(self, path: str) -> tuple[Any, str | None]:
        """(value the field would have without the user, reason: "" for a plain default, None where only the user can
        say)."""
        if path.startswith("sample.prompts"):
            return ("", None) if path.endswith((".prompt", ".ctrl_img")) else (field_of(path).default, "")
        if path.startswith("model.merge["):
            return field_of(path).default, None if path.endswith(".path") else ""
        if path.startswith("target.layers"):
            return ("", None) if path.endswith(".match") else (None, "")
        if path == "job.kind" or path.endswith("].path"):
            return self.value(path), None
        value, known = get_value(self.recommended_job(), path), self._recommended
        assert known is not None
        if path in known.start_reasons:
            return value, known.start_reasons[path]
        parts = parse_path(path)
        made = known.of[0]
        if parts[0] == "datasets" and isinstance(parts[1], int):
            made, parts[1] = known.of[1 + parts[1]], 0
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
        elif (merge := merge_field(path)) is not None:
            index, name = merge
            while index >= len(self.draft.merges):
                self.draft.merges.append(MergePanel())
            setattr(self.draft.merges[index], name, value)
        elif parts[:2] == ["target", "layers"] and len(parts) == 4:
            assert isinstance(parts[2], int)
            setattr(self.draft.layers[parts[2]], str(parts[3]), value)
        elif self.recommended(path)[0] == value:
            self.draft.values.pop(path, None)
        else:
            self.draft.values[path] = value
        if path.startswith("target.start_"):
            self.refresh()
        if parts[0] == "datasets" and parts[-1] == "caption_extension":
            assert isinstance(parts[1], int)
            self.drop_scan(self.draft.folders[parts[1]])  # its captions are to be read anew
        if parts[0] == "datasets" and parts[-1] == "exclude":
            self.refresh()  # recommended is what suits the clips that train

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

    def drop_blank_merges(self) -> None:
        """Forget the merges whose path was emptied; the others move up, so no form may show them just now."""
        for index in reversed(range(len(self.draft.merges))):
            if not self.draft.merges[index].path.strip():
                del self.draft.merges[index]
                self.draft.typed = without_index(self.draft.typed, "model.merge", index)

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

    def add_layers(self) -> None:
        """A new table of layers, of half of the blocks until others are named."""
        self.draft.layers.append(LayersPanel(match=SOME_LAYERS))

    def remove_layers(self, index: int) -> None:
        self.draft.layers.pop(index)
        self.draft.typed = without_index(self.draft.typed, "target.layers", index)

    def reasons(self) -> list[tuple[str, Any, str]]:
        """(field path, value, reason) of every field that has its recommended value, where there is a reason for it."""
        known, values = self._reasons, self.draft.values
        if known is None or known[0] is not self._recommended or known[1] != values:
            told = [(path, *self.recommended(path)) for panel in PANELS for path in self.fields(panel)]
            reasons = [(p, v, why) for p, v, why in told if why and values.get(p, v) == v]
            known = self._reasons = self._recommended, dict(values), reasons
        return known[2]

    def fields(self, panel: str) -> list[str]:
        """Field paths of one panel's form, in the order of the job file; one set per dataset, one per prompt, one per
        expert, one per table of layers."""
        if panel == "datasets":
            return [path for i in range(len(self.draft.folders)) for path in item_fields(panel, i)]
        if panel == "sample.prompts":
            return [path for i in range(len(self.draft.prompts)) for path in self.prompt_fields(i)]
        own = [f.path for f in FIELDS.values() if f.panel in (panel, f"{panel}.high", f"{panel}.low")]
        if panel == "model":
            own += merge_fields(len(self.draft.merges))
        if panel == "target":
            own += [path for i in range(len(self.draft.layers)) for path in self.layers_fields(i)]
        return own

    def layers_fields(self, index: int) -> list[str]:
        """Field paths of one table of layers."""
        return item_fields("target.layers", index)

    def prompt_fields(self, index: int) -> list[str]:
        """Field paths of one prompt: its text and image, then what it may have of its own."""
        return item_fields("sample.prompts", index)

    def placeholder(self, path: str) -> str:
        """What an empty input of the field stands for: the common value where there is one."""
        return placeholder(self.job(), path)

    def changed(self, panel: str) -> int:
        """How many fields of a panel the user has set."""
        fields = sum(1 for path in {*self.draft.values, *self.draft.typed} if str(parse_path(path)[0]) == panel)
        merges = sum(bool(m.path.strip()) for m in self.draft.merges)
        return fields + {"model": merges, "target": len(self.draft.layers)}.get(panel, 0)

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
        return write_problem(self.job_path())

    # Steps

    def blocked(self, step: str) -> str:
        """Why the step after `step` cannot be entered yet; "" when it can."""
        if step == "kind" and self.draft.kind is None:
            return "Choose what the LoRA should teach first"
        if step == "clips" and not self.draft.folders:
            return "Add a folder of clips first: type its path and press Enter, or browse with ^O"
        if step == "clips" and self.machine is None:
            return "Still reading the machine: one moment"
        return ""

    def furthest(self, name: str) -> str:
        """The step `name`, or the first one before it that is not filled in yet."""
        for step in steps.NAMES[: steps.position(name)]:
            if self.blocked(step):
                return step
        return steps.NAMES[steps.position(name)]
