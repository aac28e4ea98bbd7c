"""A finding of presets.rules as an entry of a list."""

from collections.abc import Iterable

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from presets.findings import Finding
from presets.rules.check import SEVERITIES
from presets.text import escaped
from wanlora_tui.output.formatting import count, home_path, shorten

HEADINGS = {  # glyph, noun, heading, what it means
    "error": ("✗", "error", "ERRORS", "to fix before the launch"),
    "warning": ("!", "warning", "WARNINGS", "worth a thought"),
    "advice": ("i", "hint", "ADVICE", "as you like"),
}


def entry(finding: Finding) -> Group:
    """Field, code, message and fix."""
    glyph = HEADINGS[finding.severity][0]
    fix = f"fix (f): {finding.fix}" if finding.set else f"by hand: {finding.fix}"
    return Group(
        Text.assemble(
            (f"{glyph} {shorten(escaped(home_path(finding.field)), 50)}", "bold"), (f"  {finding.code}", "dim")
        ),
        Padding(Text(escaped(finding.message)), (0, 0, 0, 2)),
        Padding(Text(escaped(fix), style="italic"), (0, 0, 0, 2)),
    )


def counted(findings: Iterable[Finding]) -> str:
    """`✗ 1 error, ! 2 warnings, i 1 hint`."""
    found: list[str] = [f.severity for f in findings]
    return ", ".join(f"{HEADINGS[s][0]} {count(n, HEADINGS[s][1])}" for s in SEVERITIES if (n := found.count(s)))


def marks_of_all(findings: Iterable[Finding]) -> str:
    """`✗1 !2 i1`."""
    found: list[str] = [f.severity for f in findings]
    return " ".join(f"{HEADINGS[s][0]}{n}" for s in SEVERITIES if (n := found.count(s)))


def mark(findings: Iterable[Finding]) -> str:
    """What a step's findings come to: `✗2`, `!1`, "" when there are none that count."""
    found: list[str] = [f.severity for f in findings]
    return next((f"{HEADINGS[s][0]}{n}" for s in ("error", "warning") if (n := found.count(s))), "")
