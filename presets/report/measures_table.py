"""The measures of a run as a table of texts, for a terminal and for the page."""

from presets.report.measures import Film, Judged, mean_film

MOST_PROMPT = 32  # characters of a prompt in the table


def rows(judged: Judged) -> list[tuple[str, ...]]:
    """The heading, each preview, and last what the clips come to."""
    clips = mean_film(judged.clips)
    films = [p.film for p in judged.previews] + ([clips] if clips is not None else [])
    tracked = any(film.track is not None for film in films)
    table = [
        ("STEP", "SPEED", "x CLIPS", "DIRECTION", "SUBJECT", "PAN", "ZOOM", "ROLL", "SHARP", "FLICKER", "COLOURS")
        + (("PATH", "SHAPE") if tracked else ())
        + ("CHANGED", "PROMPT")
    ]
    for p in judged.previews:
        numbers = _film(p.film, _number(p.speed, ".2f"), _number(p.direction, ".2f"))
        table.append((str(p.step), *numbers, *_track(p.film, tracked), _number(p.changed, ".3f"), _short(p.prompt)))
    if clips is not None:
        mean = "the mean of the clip" + (f"s, {len(judged.clips)}" if len(judged.clips) > 1 else "")
        table.append(("clips", *_film(clips, "1", "-"), *_track(clips, tracked), "-", mean))
    return table


def _film(film: Film, speed: str, direction: str) -> tuple[str, ...]:
    m, look = film.motion, film.look
    looks = f"{look.sharpness:.2f}", f"{look.flicker:.3f}", f"{look.colours:.3f}"
    if m is None:
        return "-", speed, direction, "-", "-", "-", "-", *looks
    pan = f"{_signed(m.camera.right, 2)},{_signed(m.camera.down, 2)}"
    zoom, roll = f"{_signed(100 * m.camera.zoom)}%", _signed(m.camera.roll)
    return f"{m.speed:.2f}", speed, direction, f"{m.subject_speed:.2f}", pan, zoom, roll, *looks


def _signed(value: float, digits: int = 0) -> str:
    """Nothing is neither above nor below."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _track(film: Film, tracked: bool) -> tuple[str, ...]:
    if not tracked:
        return ()
    return ("-", "-") if film.track is None else (f"{film.track.path:.3f}", f"{film.track.shape:.2f}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= MOST_PROMPT else f"{line[: MOST_PROMPT - 1]}…"
