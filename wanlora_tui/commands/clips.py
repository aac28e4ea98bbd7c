"""clips: what of each clip trains, as a table; and the very pictures, as sheets.

The sheets are engine.preview.clip_sheets's, made in a process of their own. What is wrong with clips, the rules say.
"""

import subprocess
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from presets.clips.batches import caption_of, clip_buckets, frames_of, window_starts
from presets.clips.clip_facts import CONTROL_FOLDER, ClipFacts, scan_dataset
from presets.clips.geometry import uniform_speed
from presets.clips.likeness.training_view import LITTLE, crop_of, view_lines
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.facts.gather import gather
from presets.facts.held_out import with_held_out
from presets.file_names import expanded
from presets.findings import Finding
from presets.job.schema import DatasetPanel, Job, Kind, suggested_name
from presets.job.toml_file import default_out, load_job
from presets.look import Look
from presets.rules.check import check_job, has_errors, render
from presets.text import sentences
from wanlora_tui.commands.common import print_json, print_table, report_width, say, tell, telling
from wanlora_tui.commands.job import for_programs, with_settings
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import count, home_path

Shown = dict[tuple[int, str], list[dict[str, Any]]]  # (dataset, clip's path) -> its sheets


def clips(args: Namespace) -> int:
    """Print the table (or JSON) and what is found about the clips; write the sheets. 1 when a clip cannot train."""
    job, base = _job_of(args)
    if args.show:
        _refuse_inside(args.show.absolute(), job, base)
    look = Look()
    with telling(look):
        facts = gather(job, base, out=default_out(base / "job.toml"), look=look)
    findings = about_clips(job, facts)
    job, datasets, held = with_held_out(job, facts.datasets, facts.held_out)
    facts = msgspec.structs.replace(facts, datasets=datasets)
    shown: Shown = {}
    code = 0
    if args.show and any(found.clips for found in facts.datasets):
        shown, code = _show(job, facts, args.show.absolute())
        findings += [f for sheets in shown.values() for f in map(_failed, sheets) if f is not None]
        if code not in (0, 1) or (code and not shown):
            return code
    like = twins(facts)
    listed = [
        clip_object(job, facts, number, clip, like.get(clip.path))
        | {"held_out": (number, clip.path) in held}
        | ({"sheets": shown.get((number, clip.path), [])} if args.show else {})
        for number, found in enumerate(facts.datasets)
        for clip in found.clips
    ]
    left_out = [str(Path(found.path, name)) for found in facts.datasets for name in found.left_out]
    if args.json:
        print_json({"clips": listed, "left_out": left_out, "findings": for_programs(findings)}, indented=True)
    else:
        if listed:
            print_table(rows(listed, several=len(job.datasets) > 1))
            print()
        if left_out:
            say(f"Left out of training by exclude: {', '.join(map(home_path, left_out))}.")
        print(advised(render(findings, width=report_width(sys.stdout))))
    return max(code, int(has_errors(findings)))


def _job_of(args: Namespace) -> tuple[Job, Path]:
    """The job to look at, and the folder that its paths start at. Raises UserError."""
    source: Path = args.source
    if not source.exists():
        raise UserError("no such folder of clips, and no such job file", where=str(source))
    if not source.is_dir():
        if args.kind:
            raise UserError("--kind goes with a folder of clips", fix="Leave it out: the job file has its kind")
        return with_settings(load_job(source), args.set), source.resolve().parent
    from presets.machine.machine import read_machine
    from presets.recipes.recommend import recommend

    folder = source.resolve()
    kind: Kind = args.kind or "motion"
    look = Look()
    with telling(look):
        found = scan_dataset(DatasetPanel(path=str(folder)), 0, folder, look)
    if not found.clips:
        errors = [p for p in found.problems if p.severity == "error"]
        raise UserError(" ".join(sentences(p.message, p.fix) for p in errors[:3]).rstrip("."), where=str(source))
    name = suggested_name(kind, folder.name)
    job = recommend(kind, read_machine(folder), found.clips, name=name, clips_path=str(folder)).job
    return with_settings(job, args.set), folder


def _refuse_inside(out: Path, job: Job, base: Path) -> None:
    """Sheets in a dataset's folder would train as images. Raises UserError."""
    for panel in job.datasets:
        folder = (base / expanded(panel.path)).resolve()
        if out.resolve().is_relative_to(folder):
            below = out.resolve().relative_to(folder).parts
            if not any(part.startswith(".") or part == CONTROL_FOLDER for part in below):
                raise UserError(
                    f"lies in the dataset's folder {folder}, where the sheets would train as images",
                    where=str(out),
                    fix="Choose a folder outside it with --show",
                )


def about_clips(job: Job, facts: Facts) -> list[Finding]:
    """Those findings that are about the datasets, or about what is held out of them."""
    problems = {(p.code, p.field) for found in facts.datasets for p in found.problems}
    fields = "datasets", "validation"
    return [f for f in check_job(job, facts) if (f.code, f.field) in problems or f.field.startswith(fields)]


def twins(facts: Facts) -> dict[str, str]:
    """Path of a clip -> the name of another that holds the same bytes, or looks nearly the same."""
    return {path: Path(group[0]).name for group in (*facts.alike, *facts.copies) for path in group[1:]}


def clip_object(job: Job, facts: Facts, number: int, clip: ClipFacts, twin: str | None = None) -> dict[str, Any]:
    """What is so about one clip of dataset `number`, and how it trains. `twin`: another clip that it is like."""
    panel, found = job.datasets[number], facts.datasets[number]
    frames, caption = frames_of(clip, panel), caption_of(job, panel, clip)
    moves = clip.kind == "video" and panel.sampling == "uniform"
    return {
        "dataset": number,
        "clip": str(Path(clip.path).relative_to(found.path)),
        "path": clip.path,
        "kind": clip.kind,
        "seconds": clip.duration,
        "frames": clip.frames,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
        "sampling": panel.sampling if clip.kind == "video" else None,
        "used": frames,
        "windows": len(window_starts(clip, panel)),
        "buckets": [
            {"width": b.width, "height": b.height, "cut_sides": round(crop.sides, 4), "cut_ends": round(crop.ends, 4)}
            for b in clip_buckets(clip, panel).values()
            for crop in (crop_of(clip, b),)
        ],
        "speed": uniform_speed(clip.duration, frames) if moves else 1.0,
        "cuts": facts.cuts.get(clip.path, []),
        "sees": view_lines(clip, panel),
        "twin": twin,
        "caption": caption,
        "caption_from": Path(clip.caption_file).name if clip.caption_file else "default" if caption else None,
        "mask": Path(clip.mask.path).name if clip.mask else None,
    }


def cut_off(bucket: dict[str, Any]) -> str:
    """` -6.7% left and right`: what of a picture lies outside of a bucket; "" for nothing worth a word."""
    sides, ends = bucket["cut_sides"], bucket["cut_ends"]
    if max(sides, ends) < LITTLE:
        return ""
    return f" -{100 * max(sides, ends):.1f}% {'left and right' if sides >= ends else 'top and bottom'}"


def rows(listed: list[dict[str, Any]], *, several: bool) -> list[tuple[str, ...]]:
    """The table, its heading first, with masks and what is held out in it where there are some; `several`: with the
    number of each clip's dataset."""
    heading = ("CLIP", "LENGTH", "FRAMES", "FPS", "SIZE", "USED", "SPEED", "TRAINED AT", "CAPTION", "MASK", "TRAINS")
    table = [(*heading, "CUTS")]
    for c in listed:
        video = c["kind"] == "video"
        table.append(
            (
                f"{c['dataset']}/{c['clip']}" if several else c["clip"],
                f"{c['seconds']:.1f} s" if video else "image",
                str(c["frames"]),
                f"{c['fps']:.3g}" if video else "-",
                f"{c['width']}x{c['height']}",
                f"{c['windows']}x {c['used']}" if c["windows"] > 1 else str(c["used"]),
                f"{c['speed']:.2f}x" if video else "-",
                ", ".join(f"{b['width']}x{b['height']}{cut_off(b)}" for b in c["buckets"]) or "-",
                c["caption_from"] or "none",
                c["mask"] or "-",
                "held out" if c["held_out"] else "yes",
                ", ".join(map(str, c["cuts"])) or "-",
            )
        )
    there = {"MASK": any(c["mask"] for c in listed), "TRAINS": any(c["held_out"] for c in listed)}
    shown = [i for i, name in enumerate(table[0]) if there.get(name, True)]
    return [tuple(row[i] for i in shown) for row in table]


def _show(job: Job, facts: Facts, out: Path) -> tuple[Shown, int]:
    """The sheets of each clip, and the exit code of the process that wrote them."""
    order = {"job": job, "base": str(facts.base), "datasets": facts.datasets, "cuts": facts.cuts, "out": str(out)}
    shown: Shown = defaultdict(list)
    total = earlier = written = 0
    with subprocess.Popen(
        [sys.executable, "-m", "engine.preview.clip_sheets"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(order))
            process.stdin.close()
            for line in process.stdout:
                sheet = msgspec.json.decode(line)
                if "of" in sheet:
                    total, earlier = sheet["of"], sheet.get("earlier", 0)
                    continue
                written += "error" not in sheet
                place = sheet.pop("dataset", 0), sheet.pop("clip")
                shown[place].append(sheet)
                tell(f"sheets: {sum(map(len, shown.values()))}/{total}")
        except BaseException:
            process.terminate()
            raise
        finally:
            tell("")
    if written:
        beside = f" {count(earlier, 'sheet')} of an earlier look {'is' if earlier == 1 else 'are'} there too."
        say(f"Wrote {count(written, 'sheet')} into {home_path(str(out))}.{beside if earlier else ''}")
    return dict(shown), process.returncode


def _failed(sheet: dict[str, Any]) -> Finding | None:
    if "error" not in sheet:
        return None
    message = f"{sheet['id']} {sheet['error']}"
    fix = "Mend what is found about this clip, or take it out of the folder"
    return Finding(code="clip-not-shown", severity="error", field=sheet["id"], message=message, fix=fix)
