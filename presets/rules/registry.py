"""How a rule is made: a function that yields `Found`, under a code and a severity.

    @rule("stage-none", "error")
    def stage_none(job, facts):
        \"\"\"At least one expert is trained.\"\"\"
        if not (job.multistage.high_noise or job.multistage.low_noise):
            yield Found("multistage.high_noise", "no expert is selected, so nothing would be trained",
            set={"multistage.high_noise": True})

The first line of the docstring is the rule, put positively; `docs/job-file.md` lists it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct
from msgspec import field as struct_field

from presets.facts.facts import Facts
from presets.findings import Finding, Severity
from presets.job.fields import toml_text
from presets.job.schema import Job


class Found(Struct, frozen=True):
    """One place where a rule is broken. Without `fix`, the fix is to set what `set` says.

    Like every Finding's, `message` and `fix` are phrases without a full stop: a reader puts them where it likes.
    """

    field: str
    message: str
    fix: str = ""
    set: dict[str, Any] = struct_field(default_factory=dict)


Find = Callable[[Job, Facts], Iterator[Found]]


class Rule(Struct, frozen=True):
    code: str
    severity: Severity
    about: str
    find: Find

    def __call__(self, job: Job, facts: Facts) -> Iterator[Finding]:
        for found in self.find(job, facts):
            fix = found.fix or "Set " + " and ".join(
                f"{path} = {toml_text(value)}" for path, value in found.set.items()
            )
            assert found.fix or found.set, f"{self.code} offers no fix"
            yield Finding(
                code=self.code, severity=self.severity, field=found.field, message=found.message, fix=fix, set=found.set
            )


RULES: dict[str, Rule] = {}


def rule(code: str, severity: Severity) -> Callable[[Find], Find]:
    """Register a rule. The code is stable: people and scripts look for it."""

    def register(find: Find) -> Find:
        assert code not in RULES, f"two rules are called {code}"
        assert find.__doc__, f"{code} says nothing about itself"
        RULES[code] = Rule(code, severity, " ".join(find.__doc__.split("\n\n")[0].split()), find)
        return find

    return register
