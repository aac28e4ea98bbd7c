"""What `benchmarks.learning` compares, a table for each question, and its rows printed as tables."""

import statistics
from collections import defaultdict
from typing import Any

from engine.toy_base.films import FRAMES, SIDE

LAYERS, TOKENS = 6, 80  # of the toy base's experts, of a clip there
RATE = 1e-3  # of tables that are named without one
PREVIEWS = 6  # of circles in a set

Changes = dict[str, Any]  # field -> value, besides `benchmarks.learning.job_tables`
Row = dict[str, Any]
ATTENTION = "attention"  # no field of a job, which takes the fastest: the kernel of both directions, on a GPU
ADAPTER = "ara.safetensors"  # in DIR: made where a job asks for it
PLAN = "plan"  # no field either: one of PLANS, where a toy would run uncompiled, all its weights on the device

PLANS: dict[str, dict[str, Any]] = {  # what of `presets.planner.plan.Plan` a run of the real base may be given
    "recomputed": {},
    "hidden-saved": {"save_hidden": True},
    "half-kept": {"kept": LAYERS // 2},
    "all-kept": {"kept": LAYERS},
    "streamed": {"resident": 0, "slots": 2, "activations": "host"},
    "in-two-chunks": {"chunk": TOKENS // 2},
    "any-size": {"any_size": True},
    "graphs": {"graphed": TOKENS},  # CUDA's, on a GPU alone
}
PRECISIONS = ("none", "float8", "int8", "qfloat8", "qint8", "qint4")

TABLES: dict[str, dict[str, Changes]] = {
    "plain": {"plain": {}},
    "batch": {"batch 1": {}, "batch 4": {"training.batch_size": 4}},
    "rank": {f"rank {rank}": {"target.rank": rank} for rank in (4, 16, 32)},
    "expert": {
        "both": {},
        "high alone": {"multistage.low_noise": False},
        "low alone": {"multistage.high_noise": False},
    },
    "timestep": {
        "linear": {},
        "sigmoid": {"training.timestep_type": "sigmoid"},
        "shift": {"training.timestep_type": "shift"},
        "towards high noise": {"training.timestep_bias": "high_noise"},
        "towards low noise": {"training.timestep_bias": "low_noise"},
    },
    "switch": {f"switch every {n}": {"multistage.switch_every": n} for n in (1, 10, 50)},
    "precision": {p: {"quantization.transformer": p} for p in PRECISIONS}
    | {"qint4+ara": {"quantization.transformer": "qint4+ara", "quantization.ara": ADAPTER}},
    "attention": {
        "the fastest": {},
        "flash": {ATTENTION: "flash"},
        "cudnn, in any order": {ATTENTION: "cudnn", "training.deterministic": False},
    },
    "plan": {"not compiled": {}} | {plan: {PLAN: plan} for plan in PLANS},
    "compiled": {p: {PLAN: "recomputed", "quantization.transformer": p} for p in PRECISIONS}
    | {"qint4+ara": {PLAN: "recomputed", "quantization.transformer": "qint4+ara", "quantization.ara": ADAPTER}},
    "frames": {
        "17 frames": {},
        "9 frames, uniform": {"datasets.0.num_frames": 9},
        "9 frames, realtime": {"datasets.0.num_frames": 9, "datasets.0.sampling": "realtime"},
    },
    "preservation": {
        "off": {},
        "DOP": {"training.dop": True, "training.dop_class": "stays"},
        "blank prompt": {"training.blank_prompt_preservation": True},
        "regularization": {
            "datasets.1": {"path": "known", "regularization": True, "num_frames": FRAMES, "resolutions": [SIDE]}
        },
    },
    "dropout": {f"dropout {share}": {"datasets.0.caption_dropout": share} for share in (0.0, 0.05, 0.3)},
    "guidance": {"off": {}, "differential, 3": {"advanced.differential_guidance": True}},
}
PLAIN: Changes = {  # what the jobs have anyway: as a change it is none
    "target.rank": 16,
    "training.batch_size": 1,
    "multistage.switch_every": 10,
    "quantization.transformer": "none",
    "datasets.0.caption_dropout": 0.05,
}


def variants(table: str) -> list[tuple[str, Changes]]:
    """Those of `TABLE` or `TABLE@RATE,RATE`: label, and all that is changed, the rate always among it."""
    name, _, rates = table.partition("@")
    lrs = [float(rate) for rate in rates.split(",")] if rates else [RATE]
    return [
        (f"{label}, {lr:g}", {"training.lr": lr} | {k: v for k, v in changes.items() if PLAIN.get(k) != v})
        for label, changes in TABLES[name].items()
        for lr in lrs
    ]


def show(rows: list[Row]) -> None:
    """The rows of step 0, and a table for each group of variants of which at least two have rows."""
    base = [row for row in rows if row["step"] == 0]
    for row in base:
        print({k: v for k, v in row.items() if k not in ("circle_errors", "seconds_per_step", "seed")})
    plain = [row for row in base if "quantization.transformer" not in row["changes"]]
    rates = sorted({row["changes"]["training.lr"] for row in rows})
    for table in TABLES:
        lines = table_lines(table, rates, rows, plain)
        if lines:
            print(f"\n| {table}, rate | seeds | {' | '.join(HEAD)} |\n|{'---|' * (len(HEAD) + 2)}")
            print("\n".join(lines))


HEAD = (
    "circle error by step",
    "ratio",
    "nearer than plain",
    "near",
    "turns",
    "look, dB",
    "straight error",
    "straight look, dB",
    "s/step",
)


def table_lines(table: str, rates: list[float], rows: list[Row], base: list[Row]) -> list[str]:
    """Lines of a table at the rates at which there is something to compare; `plain` compares the rates."""
    found = []
    for rate in rates:
        lines = [variant_line(label, changes, rows, base) for label, changes in variants(f"{table}@{rate}")]
        lines = [line for line in lines if line]
        if len(lines) > 1 or table == "plain":
            found += lines
    return found


def variant_line(label: str, changes: Changes, rows: list[Row], base: list[Row]) -> str:
    """A line of the table: means over the seeds at the last step that all have, with the least and the most. "" without
    rows."""
    mine = [row for row in rows if row["changes"] == changes and row["step"] > 0]
    if not mine:
        return ""
    course = defaultdict(list)
    for row in mine:
        course[row["step"]].append(row)
    seeds = len({row["seed"] for row in mine})
    final = max(step for step, found in course.items() if len(found) == seeds)
    last = course[final]
    told = [
        f"{step}: {statistics.mean(row['circle_error'] for row in found):.3f}"
        for step, found in sorted(course.items())
        if step < final
    ]
    error = spread([row["circle_error"] for row in last])
    ratio = f"{base[0]['circle_error'] / statistics.mean(row['circle_error'] for row in last):.1f}x" if base else ""
    columns = [
        ", ".join([*told, f"{final}: {error}"]),
        ratio,
        beside_plain(last, rows),
        f"{statistics.mean(row['near'] for row in last):.1f} of {PREVIEWS}",
    ]
    for key, digits in (("turns", 2), ("look", 1), ("straight_error", 3), ("straight_look", 1)):
        columns.append(spread([row[key] for row in last], digits))
    columns.append(f"{statistics.mean(row['seconds_per_step'] for row in last):.2f}")
    return f"| {label} | {seeds} | {' | '.join(columns)} |"


def beside_plain(last: list[Row], rows: list[Row]) -> str:
    """Of how many seeds the previews came nearer than with nothing changed but the rate, at the same step."""
    plain = {
        row["seed"]: row["circle_error"]
        for row in rows
        if row["step"] == last[0]["step"] and row["changes"] == {"training.lr": last[0]["changes"]["training.lr"]}
    }
    both = [row for row in last if row["seed"] in plain]
    if not both or both[0]["changes"].keys() == {"training.lr"}:
        return ""
    return f"{sum(row['circle_error'] < plain[row['seed']] for row in both)} of {len(both)}"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean, and the least and the most where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
