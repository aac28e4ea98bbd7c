"""Rules about the base model, what is merged into it, and the LoRAs that a job's own start from. What the base's files
themselves say is found while reading them: see presets.base.model_facts; what LoRA files do, in presets.facts.loras."""

from collections.abc import Iterator
from pathlib import Path

from presets.base.fetch_plan import RESERVE
from presets.base.layouts import EXPERT_PART
from presets.base.lora_file import place
from presets.base.lora_metadata import expert_said
from presets.base.safetensors_header import AGAIN
from presets.disk import same_disk
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.facts.lora_values import loras_of
from presets.facts.loras import (
    START_FIELDS,
    find_start,
    lora_at,
    mergeable,
    rank_in,
    shapes_of,
    start_of,
    startable,
)
from presets.facts.recovery_adapter import adapter_of, check_base_of, quantized_base
from presets.file_names import expanded
from presets.files import same_weights
from presets.job.expert_schedule import EXPERTS, PANEL, Expert, needed_experts, panel_of, rank_of, trained_experts
from presets.job.lora_layers import lora_layers
from presets.job.schema import Job
from presets.planner.sizes import disk_need
from presets.planner.workload import shape_of
from presets.rules.registry import Found, rule
from presets.rules.run_folder_rules import held_bytes
from presets.text import human, sentences


@rule("model-not-local", "advice")
def model_not_local(job: Job, facts: Facts) -> Iterator[Found]:
    """Every part of the base model is on this machine already."""
    model, fetching = facts.model, facts.fetching
    # what cannot be had is an error, and nothing to wait for
    if model is None or model.local or (fetching is not None and fetching.problems and not fetching.fetches):
        return
    text = fetching.text if fetching is not None else ""
    message = f"not all of the base model is on this machine; to be fetched first: {text or ', '.join(model.absent)}"
    if fetching is not None and fetching.unknown:
        message += f"; how much {'else ' if text else ''}is not known, because {fetching.unknown}"
    yield Found(
        "model.path",
        message,
        fix="Let it download, or name folders that have it in model.path, model.vae and model.text_encoder",
    )


@rule("cache-too-small", "error")
def cache_too_small(job: Job, facts: Facts) -> Iterator[Found]:
    """The disk of the Hub's cache has room for what is to be fetched, and for the run when that goes to the same
    disk."""
    fetching = facts.fetching
    if fetching is None or not fetching.need:
        return
    shared = facts.machine is not None and same_disk(Path(fetching.cache), facts.out)
    run = max(0, disk_need(job, shape_of(facts)).total - held_bytes(job, facts)) if shared else 0
    short = fetching.need + RESERVE + run - fetching.free
    if short > 0:
        what = (
            f"{human(fetching.need)} are to be fetched into"
            f" {fetching.cache}{f', the run needs {human(run)} on the same disk' if run else ''}, and"
            f" {human(fetching.free)} are free there"
        )
        yield Found(
            "model.path",
            what,
            fix=(
                f"Free {human(short)}, move the Hub's cache to another disk (HF_HOME), or name folders that have the"
                " parts already"
            ),
        )


@rule("ara-unusable", "error")
def ara_unusable(job: Job, facts: Facts) -> Iterator[Found]:
    """The accuracy recovery adapter is there, for 4 bits, and of this base model."""
    if job.quantization.transformer != "qint4+ara":
        return
    try:
        check_base_of(adapter_of(job, facts.base), job, facts)
    except UserError as e:
        yield Found(
            "quantization.ara", e.what if e.where.startswith("quantization") else f"{e.where} {e.what}", fix=e.fix
        )


@rule("ara-quantized-base", "warning")
def ara_quantized_base(job: Job, facts: Facts) -> Iterator[Found]:
    """A published accuracy recovery adapter meets weights that were not quantized before."""
    if job.quantization.transformer != "qint4+ara" or facts.model is None:
        return
    try:
        found = adapter_of(job, facts.base)
    except UserError:  # said already
        return
    parts = {EXPERT_PART[expert] for expert in needed_experts(job)}
    types = [read.dtype for part, read in facts.model.parts.items() if part in parts]
    if what := quantized_base(found, types):
        yield Found(
            "quantization.ara", what, fix="Give a base in bf16 or fp16, or build an adapter on this one: wanlora ara"
        )


@rule("ara-unused", "warning")
def ara_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """An accuracy recovery adapter comes with qint4+ara."""
    if job.quantization.ara and job.quantization.transformer != "qint4+ara":
        message = (
            f"the accuracy recovery adapter belongs to qint4+ara and is not used with {job.quantization.transformer}"
        )
        yield Found("quantization.ara", message, set={"quantization.ara": ""})


def _begun(job: Job, facts: Facts) -> bool:
    """A run of this job has a checkpoint already: it goes on from there, and no start is read again."""
    run = facts.run
    if run is None or run.name != job.job.name or not run.resume.trained:
        return False
    return run.accepted or run.resume.verdict == "fits"


def _starts(job: Job, facts: Facts) -> dict[Expert, str]:
    """The starts that the run would read."""
    trained = trained_experts(job)
    return {} if _begun(job, facts) else {e: text for e in EXPERTS if (text := start_of(job, e)) and e in trained}


def _file_fix(error: UserError, otherwise: str) -> str:
    return f"{sentences(error.fix).rstrip('.')}, or {otherwise}" if error.fix else otherwise


@rule("start-unusable", "error")
def start_unusable(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA to start from is a whole one for this model's blocks, of a rank that the job's LoRA has room for."""
    for expert, text in _starts(job, facts).items():
        at = START_FIELDS[expert]
        try:
            file, changes = startable(find_start(text, expert, facts.base), expert, shapes_of(facts.model))
        except UserError as e:
            yield Found(at, f"it cannot be started from ({e.where}: {e.what})", fix=_file_fix(e, f"leave {at} empty"))
            continue
        try:
            layers = {(t.block, t.linear): t.rank for t in lora_layers(job, expert, shapes_of(facts.model).blocks)}
        except UserError:  # the rules of layers say so
            continue
        if others := [target for target in changes if target not in layers]:
            more = f" and {len(others) - 1} layers more" if len(others) > 1 else ""
            yield Found(
                at,
                f"it changes {place(*others[0])}{more}, which this job does not train, so it could not go on from it",
                fix="Train them, or merge the file into the base with [[model.merge]] instead",
            )
            continue
        ranks = {target: rank_in(file, {target: changes[target]}) for target in changes}
        target = max(ranks, key=lambda t: ranks[t] - layers[t])
        rank, here = ranks[target], layers[target]
        if rank > here:
            what = f"it has rank {rank} at {place(*target)}, and the LoRA to train {here}: cut down it would be another"
            field = "target.rank" if panel_of(job, expert).rank is None else f"multistage.{PANEL[expert]}.rank"
            if here == rank_of(job, expert):
                yield Found(at, what, set={field: max(ranks.values())})
            else:
                yield Found(at, what, fix=f"Raise the rank in the table of target.layers for this layer to {rank}")


@rule("start-expert", "warning")
def start_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """Each expert starts from the LoRA that was trained on it, where a file's metadata or name says so."""
    said: dict[Expert, Expert] = {}
    for expert, text in _starts(job, facts).items():
        try:
            found = expert_said(find_start(text, expert, facts.base).file)
        except UserError:  # said already
            continue
        if found not in (None, expert):
            said[expert] = found
    if len(said) == len(EXPERTS):
        yield Found(
            "target.start_high",
            "by what their files say, the two starts are swapped",
            set={"target.start_high": job.target.start_low, "target.start_low": job.target.start_high},
        )
        return
    for expert, other in said.items():
        yield Found(
            START_FIELDS[expert],
            f"by its metadata or its name this LoRA is for the {other.replace('_', ' ')} expert, and its shapes fit"
            " either one",
            fix=f"Give the {expert.replace('_', ' ')} expert's own, or leave it, if that is meant",
        )


@rule("start-unused", "warning")
def start_unused(job: Job, facts: Facts) -> Iterator[Found]:
    """Only an expert that is trained has a LoRA to start from."""
    for expert in EXPERTS:
        if start_of(job, expert) and expert not in trained_experts(job):
            yield Found(
                START_FIELDS[expert],
                f"the {expert.replace('_', ' ')} expert is not trained, so nothing starts from this LoRA, and previews"
                " go without it",
                fix=(
                    f'Train that expert, or set {START_FIELDS[expert]} = "" (and to see it in previews, merge it into'
                    " that expert with [[model.merge]])"
                ),
                set={START_FIELDS[expert]: ""},
            )


@rule("start-other-expert", "advice")
def start_other_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """Where a run or a file to start from holds both experts, both start from it."""
    starts = _starts(job, facts)
    for expert in trained_experts(job):
        other = next(e for e in EXPERTS if e != expert)
        if expert in starts or other not in starts:
            continue
        try:
            found = find_start(starts[other], expert, facts.base)
            own = find_start(starts[other], other, facts.base)
            file = startable(found, expert, shapes_of(facts.model))[0]
        except UserError:
            continue
        if found.file != own.file or expert in file.modules:
            yield Found(
                START_FIELDS[expert],
                f"the {expert.replace('_', ' ')} expert's LoRA begins fresh, although {Path(starts[other]).name} holds"
                " one for it",
                set={START_FIELDS[expert]: starts[other]},
            )


@rule("start-left-out", "warning")
def start_left_out(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA to start from was trained on Wan 2.2, which has no image encoder of its own."""
    for expert, text in _starts(job, facts).items():
        try:
            file, _ = startable(find_start(text, expert, facts.base), expert, shapes_of(facts.model))
        except UserError:
            continue
        if file.image:
            yield Found(
                START_FIELDS[expert],
                f"{len(file.image)} of its {len(file.shapes)} tensors are for the image encoder of Wan 2.1, which Wan"
                " 2.2 does not have: they are left out",
                fix="Start from a LoRA of Wan 2.2, or leave it, if that is meant",
            )


@rule("merge-unusable", "error")
def merge_unusable(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA to merge is a whole one for this model, and everything in it can be applied."""
    for i, panel in enumerate(job.model.merge):
        try:
            mergeable(panel, facts.base, needed_experts(job), shapes_of(facts.model))
        except UserError as e:
            yield Found(
                f"model.merge[{i}].path",
                f"it cannot be merged ({e.where}: {e.what})",
                fix=_file_fix(e, "take this merge out"),
            )


@rule("merge-left-out", "warning")
def merge_left_out(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA to merge has nothing for parts that Wan 2.2 I2V does not have."""
    for i, panel in enumerate(job.model.merge):
        try:
            found = mergeable(panel, facts.base, needed_experts(job), shapes_of(facts.model))
        except UserError:
            continue
        for note in found.notes:
            fix = "Merge a LoRA of Wan 2.2 I2V A14B, or leave it, if that is meant"
            yield Found(f"model.merge[{i}].path", f"{found.path.name}: {note}", fix=fix)


@rule("merge-expert", "warning")
def merge_expert(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA is merged into the expert that it was made for, where its metadata or its name says so."""
    for i, panel in enumerate(job.model.merge):
        path = lora_at(facts.base / expanded(panel.path))
        said = expert_said(path) if panel.path.strip() else None
        if said is None or panel.expert == said:
            continue
        where = "both experts" if panel.expert == "both" else f"the {panel.expert.replace('_', ' ')} expert"
        yield Found(
            f"model.merge[{i}].expert",
            f"{path.name} is for the {said.replace('_', ' ')} expert by its metadata or its name, and is merged into"
            f" {where}",
            set={f"model.merge[{i}].expert": said},
        )


@rule("merge-twice", "warning")
def merge_twice(job: Job, facts: Facts) -> Iterator[Found]:
    """A LoRA that is merged acts once: it is not merged again, started from, or run with in previews."""
    needed, merged = needed_experts(job), dict[int, tuple[Path, set[Expert]]]()
    for i, panel in enumerate(job.model.merge):
        try:
            found = mergeable(panel, facts.base, needed, shapes_of(facts.model))
        except UserError:  # said already
            continue
        for j, (path, experts) in merged.items():
            if (both := experts & set(found.experts)) and _same_lora(path, found.path):
                yield Found(
                    f"model.merge[{i}].path",
                    f"{found.path.name} is merged into {_experts_text(both)} already (model.merge[{j}]), so it would"
                    f" act at {job.model.merge[j].strength + panel.strength:g} there",
                    fix=f"Take this merge out; to let it act more strongly, raise model.merge[{j}].strength",
                )
                break
        merged[i] = found.path, set(found.experts)
    for field, expert, other in _beside_merges(job, facts):
        for i, (path, experts) in merged.items():
            if expert in experts and job.model.merge[i].strength and _same_lora(path, other):
                yield Found(
                    field,
                    f"{other.name} is merged into {_experts_text({expert})} as well (model.merge[{i}]), so what it does"
                    " would come twice there",
                    fix=f"Take model.merge[{i}] out, or leave {field} empty",
                )
                break


def _beside_merges(job: Job, facts: Facts) -> Iterator[tuple[str, Expert, Path]]:
    """(field, expert, file) of each LoRA that acts in an expert beside what is merged into it."""
    files = loras_of(job, facts.base)
    for expert, field in START_FIELDS.items():
        if expert in _starts(job, facts) and field in files:
            yield field, expert, files[field]
    own = {e: f"sample.accelerator{'_low' if e == 'low_noise' and job.sample.accelerator_low else ''}" for e in EXPERTS}
    for expert, field in own.items():
        if field in files:
            yield field, expert, files[field]


def _same_lora(one: Path, other: Path) -> bool:
    try:
        return same_weights(one, other)
    except OSError:  # it was there a moment ago
        return False


def _experts_text(experts: set[Expert]) -> str:
    named = " and the ".join(e.replace("_", " ") for e in EXPERTS if e in experts)
    return f"the {named} expert{'s' if len(experts) > 1 else ''}"


@rule("lora-damaged", "error")
def lora_damaged(job: Job, facts: Facts) -> Iterator[Found]:
    """The LoRA files that a job begins with hold numbers."""
    begun = set(START_FIELDS.values()) - {START_FIELDS[e] for e in _starts(job, facts)}
    for field, path in loras_of(job, facts.base).items() if facts.lora_values else ():
        if field not in begun and (what := facts.lora_values.get(str(path))):
            yield Found(field, f"{path.name}: {what}", fix=f"{AGAIN}, or take it out of the job")


@rule("merge-nothing", "advice")
def merge_nothing(job: Job, facts: Facts) -> Iterator[Found]:
    """A merged LoRA changes something."""
    for i, panel in enumerate(job.model.merge):
        if panel.strength == 0:
            yield Found(
                f"model.merge[{i}].strength",
                "merged at 0 it changes nothing",
                set={f"model.merge[{i}].strength": 1.0},
            )
        elif panel.expert != "both" and panel.expert not in needed_experts(job):
            yield Found(
                f"model.merge[{i}].expert",
                "this job loads only the other expert, so it changes nothing",
                fix="Take this merge out, or train that expert",
            )


@rule("merge-with-ara", "warning")
def merge_with_ara(job: Job, facts: Facts) -> Iterator[Found]:
    """An accuracy recovery adapter meets the weights that it was built for."""
    if job.model.merge and job.quantization.transformer == "qint4+ara":
        yield Found(
            "quantization.transformer",
            "the accuracy recovery adapter was built for the base without the LoRAs merged into it, and repairs less of"
            " what quantizing changes here",
            fix='Set quantization.transformer = "qint8" where the memory allows, or leave it, if that is meant',
        )
