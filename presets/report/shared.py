"""What of a run the page may show to whoever gets it: with save.metadata = "plain" no folder, no prompt and no caption,
as in the LoRA files; with "full" all of it.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any

import msgspec

from presets.job.plain_tables import PROSE, plain_tables
from presets.job.schema import Job
from presets.job.toml_file import job_to_dict
from presets.report.measures import Judged
from presets.report.run_reader import StoredRun
from presets.runs.run_view import RunView

LEFT_OUT = "(left out)"
SHORTEST = 8  # characters of a prompt that is looked for in other texts: shorter ones are in any text
_NAME = r"[^\s/\"'`<>|:;,()\[\]]+"
_PLACE = re.compile(rf"(?<![\w.:/~<-])(?:~[\w.-]*)?(?:/{_NAME})+/?")  # absolute, or from somebody's home on


def is_open(job: Job) -> bool:
    """Whether folders and prompts are shown."""
    return job.save.metadata == "full"


def shareable(run: StoredRun) -> StoredRun:
    """The run as its page shows it."""
    if is_open(run.job):
        return run
    hide = _hidden(run)
    return run._replace(job=msgspec.convert(plain_tables(run.job), Job), view=_plain_view(run.view, hide))


def shareable_measures(run: StoredRun, judged: Judged | None) -> Judged | None:
    """The measures of a run that is not shareable yet."""
    if judged is None or is_open(run.job):
        return judged
    hide = _hidden(run)
    previews = [msgspec.structs.replace(p, prompt=f"prompt {p.number + 1}") for p in judged.previews]
    return msgspec.structs.replace(judged, previews=previews, notes=[hide(note) for note in judged.notes])


def _plain_view(view: RunView, hide: Callable[[str], str]) -> RunView:
    newest = {PurePath(sample.path).name: sample.prompt for sample in view.samples}
    numbers = {name: i for i, name in enumerate(sorted(newest), 1)}
    samples = []
    for sample in view.samples:
        name = PurePath(sample.path).name
        prompt = f"Prompt {numbers[name]}" if sample.prompt == newest[name] else "another prompt"
        samples.append(msgspec.structs.replace(sample, prompt=prompt))
    return msgspec.structs.replace(
        view,
        outcome=hide(view.outcome),
        plan=hide(view.plan),
        device=hide(view.device),
        samples=samples,
        changes=[msgspec.structs.replace(c, old=hide(c.old), new=hide(c.new)) for c in view.changes],
        findings=[{key: hide(v) if isinstance(v, str) else v for key, v in f.items()} for f in view.findings],
    )


def _hidden(run: StoredRun) -> Callable[[str], str]:
    """A function that leaves out of a text the prompts of the run, and of paths all but the last name. The folders
    that the job names are known whole, also those with blanks in them."""
    tables = job_to_dict(run.job)
    prose = {*_prose(tables), *(sample.prompt for sample in run.view.samples)}
    places = {text.rstrip("/") for text in _texts(tables) if text.startswith(("/", "~/"))}
    places |= {str(run.folder), str(run.folder.resolve())}
    places |= {str(above) for place in places for above in PurePath(place).parents}
    said = _any_of({text for text in prose if len(text) >= SHORTEST} - places)
    known = re.compile(f"(?:{_any_of(place for place in places if len(place) > 1).pattern})(?:/{_NAME})*")

    def hide(text: str) -> str:
        text = said.sub(LEFT_OUT, text)
        for place in (known, _PLACE):
            text = place.sub(lambda found: PurePath(found[0]).name, text)
        return text

    return hide


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """The longest of them that is there; of none, nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text)))) or "(?!)")


def _prose(tables: Any, inside: bool = False) -> Iterable[str]:
    """Every text of a job that says what is shown."""
    if isinstance(tables, dict):
        for key, value in tables.items():
            yield from _prose(value, inside or key in PROSE)
    elif isinstance(tables, list):
        for value in tables:
            yield from _prose(value, inside)
    elif isinstance(tables, str) and inside:
        yield tables


def _texts(tables: Any) -> Iterable[str]:
    if isinstance(tables, dict):
        tables = list(tables.values())
    if isinstance(tables, list):
        for value in tables:
            yield from _texts(value)
    elif isinstance(tables, str):
        yield tables
