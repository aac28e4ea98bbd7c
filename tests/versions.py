"""The versions that pyproject.toml allows."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def declared() -> dict[str, list[Requirement]]:
    """The requirements of each extra, and under "" those of the package itself."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}


def bounds(requirement: Requirement) -> tuple[Version | None, Version | None]:
    """(the lowest version allowed, the first one no longer allowed); a pinned version is its own lowest and has no end."""
    by = {s.operator: Version(s.version) for s in requirement.specifier}
    return by.get(">=", by.get("==")), by.get("<")
