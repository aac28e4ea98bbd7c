"""docs/security.md: each promise names a test, and the test is there."""

import ast
import re

from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)


def test_every_test_that_a_promise_names_is_there():
    assert len(NAMED) > 15
    for file, name in NAMED:
        tree = ast.parse((ROOT / file).read_bytes())
        functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not name or name in functions, f"{file} has no {name}"


def test_every_promise_names_one():
    promises = TEXT.partition("## Promises")[2].partition("\n## ")[0]
    points = re.split(r"\n- ", promises)[1:]
    assert len(points) > 12
    for point in points:
        if "ssh's to protect" not in point and "are listed in" not in point:
            assert re.search(r"`tests/", point), point
