"""docs/job-file.md is made from the fields and the rules, and is up to date."""

import re
from pathlib import Path

import presets
from presets.base.part_facts import WRONG
from presets.job.fields import FIELDS
from presets.job.toml_file import parse_job
from presets.machine.precisions import TEXT_ENCODER, TRANSFORMER
from presets.rules import RULES
from presets.rules.docs import READING, page
from tests.helpers import ROOT

PAGE = ROOT / "docs" / "job-file.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == page(), "stale: python -m presets.rules.docs > docs/job-file.md"


def test_the_page_holds_every_field_and_every_rule():
    text = page()
    for field in FIELDS.values():
        assert f"| `{field.name}` | {field.label} |" in text
    for rule in RULES.values():
        assert f"| `{rule.code}` | {rule.severity} | {rule.about} |" in text


def test_the_page_says_which_precision_runs_where():
    text = page()
    assert (
        '| `quantization.transformer = "float8"` | 8.9 | multiplied in 8 bits' in text
        and '| `quantization.transformer = "qfloat8"` | 8.0 | ' in text
    )
    for name, table in (("transformer", TRANSFORMER), ("text_encoder", TEXT_ENCODER)):
        values = FIELDS[f"quantization.{name}"].type_text
        assert all(f'"{value}"' in values for value in table) and values.count('"') == 2 * len(table), (
            "each value of the field, and no other"
        )


def test_what_reading_can_find_is_on_the_page():
    codes = set()
    for module in (
        "clips/captions",
        "clips/clip_facts",
        "clips/file_head",
        "clips/loss_masks",
        "clips/video_index",
        "base/model_facts",
        "base/composition",
        "base/sources",
        "base/part_facts",
        "base/fetch_plan",
    ):
        source = (Path(presets.__file__).parent / f"{module}.py").read_text("utf-8")
        codes |= set(re.findall(r'(?:code=|_error\(|_finding\(|problem\()\s*"([a-z0-9-]+)"', source))
    assert codes | {code for code, _, _ in WRONG.values()} == set(READING)
    assert not codes & set(RULES)


def test_tables_have_the_same_number_of_cells_in_each_row():
    for line in page().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (6, 4), line


def test_the_example_is_a_job():
    parse_job(page().partition("```toml\n")[2].partition("```")[0])
