"""Loss spikes: losses that stand out among those of the same expert and the same noise level.

The loss of a flow-matching step depends on its timestep far more than on the training so far, so it is compared with
the last ones of its own tenth of the timesteps, as a factor: clips differ by factors, and the losses of a healthy run
are skewed, with a long tail upwards. Median and MAD (median absolute deviation) of the logarithms are not moved by the
spikes themselves.
"""

from collections import defaultdict, deque
from math import exp, log
from statistics import median

from presets.findings import Finding
from presets.runs.events import Event

BINS, TIMESTEPS = 10, 1000
WINDOW = 50  # losses remembered per expert and bin
ENOUGH = 12  # of them, before any is judged
DEVIATIONS = 6.0  # from the median, in standard deviations as MAD estimates them
SCALE = 1.4826  # standard deviation of a normal distribution / its MAD
FLOOR = 0.1  # as a factor, a tenth: the least that counts as one deviation, however even the losses are
QUIET = 50  # steps without a further finding


class SpikeWatch:
    """Fed with a run's events in order; the same events give the same findings."""

    def __init__(self) -> None:
        self._losses: dict[tuple[str, int], deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._reported = -QUIET

    def feed(self, event: Event) -> list[Finding]:
        if event.kind != "step":
            return []
        data = event.data
        losses = self._losses[data["expert"], min(BINS - 1, int(data["timestep"] * BINS / TIMESTEPS))]
        found = []
        if len(losses) >= ENOUGH and data["step"] >= self._reported + QUIET:
            usual = median(losses)
            deviation = max(SCALE * median(abs(log(loss / usual)) for loss in losses), FLOOR)
            if data["loss"] > usual * exp(DEVIATIONS * deviation):
                self._reported = data["step"]
                found.append(_finding(data["step"], data["loss"], usual, data["timestep"], data["clips"]))
        losses.append(max(data["loss"], 1e-12))
        return found


def _finding(step: int, loss: float, usual: float, timestep: float, clips: list[str]) -> Finding:
    return Finding(
        code="loss-spike",
        severity="warning",
        field="training.lr",
        message=(
            f"step {step}: the loss was {loss:.3g}, and {usual:.3g} is usual near timestep {timestep:.0f} (clips"
            f" {', '.join(clips)})"
        ),
        fix="Look at the clips named; if spikes come again with other clips, lower training.lr",
    )
