"""Check a job: run every rule over its facts (presets.facts.gather), and show what was found."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

import msgspec

from presets.clips.clip_facts import CLIP_SUFFIXES
from presets.clips.loss_masks import is_mask
from presets.facts.facts import Facts
from presets.findings import Finding
from presets.job.schema import Job
from presets.rules import RULES

SEVERITIES = ("error", "warning", "advice")


def check_job(job: Job, facts: Facts) -> list[Finding]:
    """Everything found, errors first, then warnings, then advice; within these in the order of datasets, model,
    rules."""
    found = [_may_be_left_out(job, i, d.path, f) for i, d in enumerate(facts.datasets) for f in d.problems]
    found += facts.held_out.problems if facts.held_out is not None else []
    if facts.model is not None:  # a boundary in the job makes up for one that the model does not name
        found += [f for f in facts.model.problems if f.code != "model-no-boundary" or job.model.boundary == "model"]
    if facts.fetching is not None:
        found += [f for f in facts.fetching.problems if f not in found]
    for rule in RULES.values():
        found += rule(job, facts)
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def _may_be_left_out(job: Job, index: int, folder: str, finding: Finding) -> Finding:
    """A finding about a file that cannot be a clip, with the way to do without the file: not to train on it."""
    file = Path(finding.field)
    if finding.severity != "error" or file.suffix.lower() not in CLIP_SUFFIXES or not file.is_relative_to(folder):
        return finding
    if is_mask(file) or index >= len(job.datasets):
        return finding
    exclude = [*job.datasets[index].exclude, file.relative_to(folder).as_posix()]
    return msgspec.structs.replace(
        finding, fix=f"Leave it out of training, or: {finding.fix}", set={f"datasets[{index}].exclude": exclude}
    )


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(f.severity == "error" for f in findings)


def render(findings: list[Finding], *, width: int = 100) -> str:
    """Findings as plain text, one paragraph each, and a last line that counts them."""
    out = []
    for f in findings:
        out.append(f"{f.severity.upper()}  {f.field}  [{f.code}]")
        for text in (f.message, f"Fix: {f.fix}" if f.fix else ""):
            out += textwrap.wrap(
                text, width, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        out.append("")
    return "\n".join([*out, summary(findings)])


def summary(findings: list[Finding]) -> str:
    """`1 error, 2 warnings`, or `nothing found`."""
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    words = [f"{n} {s}{'s' if n > 1 and s != 'advice' else ''}" for s, n in counts.items() if n]
    return ", ".join(words) or "nothing found"
