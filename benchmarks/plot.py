"""How long the dashboard's plot takes to draw a run of a million steps, and what of the run it still shows.

    python -m benchmarks.plot [--steps N] [--redraws N]

The steps are folded as the daemon does it, and drawn as the dashboard does it: the view into series, these into cells.
Each redraw begins with the view, as after a new step; a cursor that moves or a zoom takes less. The baseline of a run
is the same drawing of 2400 steps, in the same process.
"""

import argparse
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator

from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_all

SIZES = ((78, 11), (98, 16), (105, 34))  # of the plot in a terminal of 80x24, 100x30 and 160x48
SPIKE = 9.0


def events(steps: int) -> Iterator[Event]:
    """Two experts in turns, noisy losses whose trend halves, one spike."""
    rng = random.Random(0)
    start = {"name": "big", "job": {}, "plan": "", "device": "", "steps": steps, "resumed_from": 0}
    yield Event(seq=1, time=0.0, run="r", attempt=1, kind="started", data=start)
    for step in range(1, steps + 1):
        loss = trend(step, steps) * math.exp(rng.gauss(0, 0.45) - 0.45**2 / 2)
        data = {
            "step": step,
            "expert": "high_noise" if (step - 1) // 10 % 2 == 0 else "low_noise",
            "loss": SPIKE if step == steps // 3 else loss,
            "lr": 1e-4 if step < steps / 2 else 5e-5,
            "grad_norm": 0.3,
            "timestep": 900.0,
            "seconds": {"total": 2.0},
            "vram_gib": 1.0,
            "ram_gib": 1.0,
        }
        yield Event(seq=step + 1, time=2.0 * step, run="r", attempt=1, kind="step", data=data)


def trend(step: int, steps: int) -> float:
    return 0.1 * (1 + math.exp(-4 * step / steps))


def fold(steps: int) -> RunView:
    view = RunView()
    apply_all(view, events(steps))
    return view


def milliseconds(view: RunView, beside: RunView | None, columns: int, rows: int, redraws: int) -> list[float]:
    """CPU time of each redraw: on a busy machine the wall clock counts the others, too. `beside`: a run that has ended,
    whose series the plot keeps."""
    from wanlora_tui.plot.figure import Options, draw
    from wanlora_tui.plot.series import plotted

    found, kept = [], [plotted(beside)] if beside else []
    for _ in range(redraws):
        begin = time.process_time()
        draw([plotted(view), *kept], Options(), None, columns, rows)
        found.append(1000 * (time.process_time() - begin))
    return found


def honesty(view: RunView, steps: int) -> list[str]:
    points = [p for ps in view.losses.values() for p in ps]
    peak = max(p.loss if p.high is None else p.high for p in points)
    errors = []
    for ps in view.losses.values():
        for part in range(10):
            piece = ps[part * len(ps) // 10 : (part + 1) * len(ps) // 10]
            truth = statistics.fmean(trend(p.step, steps) for p in piece)
            errors.append(abs(statistics.fmean(p.loss for p in piece) / truth - 1))
    return [
        f"points kept: {len(points)} of {steps}",
        f"highest loss kept: {peak:g} (the spike was {SPIKE:g})",
        f"means of tenths of the run, from the trend that was drawn from: at most {100 * max(errors):.2f}% off",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--redraws", type=int, default=30)
    args = parser.parse_args()
    begin = time.process_time()
    import wanlora_tui.plot.figure  # noqa: F401

    print(f"import of what draws: {1000 * (time.process_time() - begin):.0f} ms; numpy: {'numpy' in sys.modules}")
    small, large = fold(2400), fold(args.steps)
    pairs: list[tuple[RunView, RunView | None]] = [(small, None), (large, None), (large, large)]
    print(f"Python {platform.python_version()}; CPU time per redraw, milliseconds, {args.redraws} each")
    print(f"{'plot':>8} {'2400 steps':>22} {f'{args.steps} steps':>22} {'an ended one beside':>22}")
    for columns, rows in SIZES:
        cells = [milliseconds(*pair, columns, rows, args.redraws) for pair in pairs]
        texts = [f"{statistics.median(found):.1f} (most {max(found):.1f})" for found in cells]
        print(f"{columns:>4}x{rows:<3} " + " ".join(f"{text:>22}" for text in texts))
    for line in honesty(large, args.steps):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
