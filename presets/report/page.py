"""The page of a run, RUN/report.html: one file that needs no server, no script and nothing from elsewhere. The same run
gives the same bytes: nothing in it is of the day or the machine that it is written on.

Curves are presets.report.chart's, previews films's, its look style's, what is measured of previews measures's.
"""

import time
from pathlib import Path

from presets.atomic_file import write_file
from presets.errors import UserError
from presets.files import require_own
from presets.job.expert_schedule import EXPERTS, trained_experts
from presets.report.best import Choice, choice_of, ranking_of
from presets.report.chart import Place, chart, smoothed
from presets.report.comfy import how_to_use
from presets.report.films import Reel, Shown, reel
from presets.report.held_out import held_out
from presets.report.markup import Markup, element, joined, link, table
from presets.report.measures import Judged, read_measures, summaries
from presets.report.measures_table import rows as measured_rows
from presets.report.run_reader import StoredRun, read_run
from presets.report.settings import settings_of
from presets.report.shared import shareable, shareable_measures
from presets.report.style import STYLE
from presets.runs.run_folder import PAGE_FILE
from presets.runs.run_view import RunView
from presets.text import sentences, setting_text

NAMES = {"high_noise": "High noise", "low_noise": "Low noise"}


def write_page(folder: Path) -> Path:
    """Write the page of the run in `folder`, and give its path. Raises UserError or OSError."""
    run = read_run(folder)
    path = folder / PAGE_FILE
    require_own(path)
    write_file(path, page(run).encode())
    return path


def page(run: StoredRun) -> str:
    """The whole page. Raises nothing because of what a run's files hold."""
    judged, unread = _judged(run)
    run, judged = shareable(run), shareable_measures(run, judged)
    ranking = ranking_of(run, judged)
    best = choice_of(run, ranking)
    step = None if best is None else best.step
    shown = reel(run, step)
    body = joined(
        _head(run),
        _section("Use it in ComfyUI", how_to_use(run, best)),
        _section("Losses", *_losses(run.view, best)),
        _section("Held-out loss", *held_out(run.view, ranking, best, NAMES)),
        _section("Previews", *_previews(shown, best)),
        _section("Measures of the previews", *_measures(run, judged, unread)),
        _section("Findings", *_findings(run.view)),
        _section("Changed while it trained", *_changes(run.view)),
        _section("Settings", *settings_of(run.job)),
    )
    head = joined(
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        # whatever a text in it may be, the page runs nothing and asks nobody for anything
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'",
        ),
        element("title", f"{run.job.job.name}: wanlora"),
        element("style", Markup(f"\n{STYLE}\n")),
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _section(title: str, *parts: str) -> Markup:
    return element("section", element("h2", title), *parts) if any(parts) else Markup()


def _head(run: StoredRun) -> Markup:
    view, job = run.view, run.job
    facts: list[tuple[str, str]] = [
        ("Trained", f"{view.step:,} of {view.steps:,} steps{_attempts(view)}"),
        ("Begun", _moment(view.started_at)),
        ("Last heard of", _moment(view.updated_at)),
        ("At work for", _span(view.spent.worked)),
        ("Base", job.model.path),
        ("LoRA", _lora(run)),
        ("Datasets", ", ".join(Path(panel.path).name or panel.path for panel in job.datasets)),
        ("On", ": ".join(filter(None, (view.device, view.plan)))),
    ]
    listed = [part for name, value in facts if value for part in (element("dt", name), element("dd", value))]
    outcome = element("p", sentences(view.outcome[0].upper() + view.outcome[1:])) if view.outcome else ""
    if view.state in ("starting", "running"):
        outcome = element(
            "p", "It was not over when this page was written; ", element("code", "wanlora report"), " writes it anew."
        )
    lines = "1 line of its events could not be read, and is left out."
    if run.damaged != 1:
        lines = f"{run.damaged} lines of its events could not be read, and are left out."
    damaged = element("p", lines) if run.damaged else ""
    return element(
        "header",
        element("h1", job.job.name),
        element("span", view.state, class_=f"badge {view.state if view.state in ('done', 'failed') else ''}".strip()),
        " ",
        element("span", f"a {job.job.kind} LoRA for Wan 2.2 I2V A14B", class_="faint"),
        outcome,
        damaged,
        element("dl", *listed),
    )


def _attempts(view: RunView) -> str:
    return f", in {view.attempt} attempts" if view.attempt > 1 else ""


def _lora(run: StoredRun) -> str:
    experts = " and ".join(NAMES[expert].lower() for expert in trained_experts(run.job))
    target = run.job.target
    alpha = target.rank if target.alpha is None else target.alpha
    return f"rank {target.rank}, alpha {alpha:g}, {experts}"


def _losses(view: RunView, best: Choice | None) -> list[Markup]:
    parts: list[Markup] = []
    for expert in EXPERTS:
        points = view.losses.get(expert, [])
        drawn = smoothed(
            [
                Place(p.step, p.loss, p.loss if p.low is None else p.low, p.loss if p.high is None else p.high)
                for p in points
            ]
        )
        if not drawn:
            continue
        last = drawn[-1]
        parts += [
            element("h3", f"{NAMES[expert]}: {drawn[0].mean:.4g} to {last.mean:.4g}"),
            chart(
                f"Loss of the {NAMES[expert].lower()} expert over {view.step:,} steps",
                expert,
                drawn,
                until=view.step,
                marked=best.step if best is not None and best.ranked else None,
            ),
        ]
    if parts:
        about = (
            "A smoothed mean, and the range of the middle 80% of steps around it. The loss of a step depends mostly on"
            " its noise: it is no measure of how good previews look."
        )
        parts.append(element("p", about, class_="faint"))
    return parts


def _previews(reel: Reel, best: Choice | None) -> list[Markup]:
    parts: list[Markup] = []
    for of_prompt in reel.prompts:
        newest = of_prompt[-1].sample
        parts += [
            element("h3", f"{newest.prompt or '(no prompt)'} "),
            element("div", *(_figure(shown, best, newest.prompt) for shown in of_prompt), class_="strip"),
        ]
    words = []
    if reel.steps_of > (there := len({s.sample.step for p in reel.prompts for s in p})):
        words.append(f"Of {reel.steps_of} steps with previews, {there} are shown")
    if reel.prompts_of > len(reel.prompts):
        words.append(f"Of {reel.prompts_of} prompts, {len(reel.prompts)} are shown")
    if reel.linked:
        words.append(
            f"{reel.linked} films would make this page too large for the mail: they are linked, and play while it lies"
            " in its run folder"
        )
    return [*parts, element("p", sentences(*words), class_="faint")] if words else parts


def _figure(shown: Shown, best: Choice | None, prompt: str) -> Markup:
    """`prompt`: what stands above it."""
    sample = shown.sample
    is_best = best is not None and best.ranked and best.step == sample.step
    words = f"step {sample.step:,}, seed {sample.seed}"
    poster = {"poster": shown.poster} if shown.poster else {}
    if shown.film:
        picture = element(
            "video", src=shown.film, controls=True, loop=True, muted=True, playsinline=True, preload="none", **poster
        )
    elif shown.poster:
        picture = element("img", src=shown.poster, alt=words)
        picture = element("a", picture, href=link(shown.path)) if shown.path else picture
    else:
        picture = element("p", "not there any more" if not shown.path else "no poster", class_="faint")
    about: list[str] = [words, ", the best"] if is_best else [words]
    if sample.prompt != prompt:  # which has been changed since
        about.append(f", of “{sample.prompt}”")
    if shown.path:  # also where the film is in the page: not every phone plays those
        about += [": ", element("a", "film", href=link(shown.path))]
    return element("figure", picture, element("figcaption", *about), class_="best" if is_best else False)


def _judged(run: StoredRun) -> tuple[Judged | None, str]:
    """The measures of its previews, and why there are none where they cannot be read."""
    try:
        return read_measures(run.folder), ""
    except UserError as e:
        return None, sentences(f"The measures could not be read: {e.what}", e.fix)


def _measures(run: StoredRun, judged: Judged | None, unread: str) -> list[Markup]:
    if judged is None:
        return [element("p", unread)] if unread else []
    said = [
        element("li", sentences(text[0].upper() + text[1:])) for text in [*summaries(judged), *judged.notes] if text
    ]
    about = "Lengths are widths of the picture, seconds the model's own 16 frames; see wanlora judge --help."
    newest = max((p.step for p in judged.previews), default=0)
    if newest < (made := max((s.step for s in run.view.samples), default=0)):
        about += f" Measured after step {newest:,}, before the previews up to step {made:,}."
    return [element("ul", *said), table(measured_rows(judged), wide=True), element("p", about, class_="faint")]


def _findings(view: RunView) -> list[Markup]:
    parts = []
    for found in view.findings:
        severity, step = str(found.get("severity", "")), found.get("step")
        field = element("code", str(found.get("field", "")))
        where = f"{severity}, after step {step}" if isinstance(step, int) else severity
        parts.append(
            element(
                "div",
                element("p", sentences(str(found.get("message", "")), str(found.get("fix", "")))),
                element("p", f"{where}: {found.get('code', '')}, ", field, class_="faint"),
                class_=f"finding {severity if severity in ('error', 'warning') else 'advice'}",
            )
        )
    return parts


def _changes(view: RunView) -> list[Markup]:
    if not view.changes:
        return []
    rows: list[tuple[str, ...]] = [("After step", "Field", "From", "To")]
    rows += [(f"{c.step:,}", c.field, _value(c.field, c.old), _value(c.field, c.new)) for c in view.changes]
    return [table(rows)]


def _value(field: str, value: str) -> str:
    try:
        return setting_text(field, float(value))
    except ValueError:
        return value


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds > 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s" if seconds > 0 else ""
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
