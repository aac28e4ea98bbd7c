"""An expert whose LoRA gets no gradient at all, step after step, though its losses are none.

What single blocks get, the trainer looks at itself, in its first steps (engine.training.gradient_check).
"""

from collections import Counter

from presets.findings import Finding
from presets.job.expert_schedule import PANEL, Expert
from presets.job.schema import Job
from presets.runs.events import Event

IN_A_ROW = 5  # steps of an expert


class NoGradient:
    """Steps whose clips train the LoRA at strength 0 (datasets.weight) are passed over: nothing is due of them."""

    def __init__(self, job: Job) -> None:
        self._weights = [panel.weight for panel in job.datasets]
        self._in_a_row: Counter[Expert] = Counter()

    def feed(self, event: Event) -> list[Finding]:
        if event.kind != "step" or not (event.data["loss"] and any(map(self._trains, event.data["clips"]))):
            return []
        expert: Expert = event.data["expert"]
        self._in_a_row[expert] = 0 if event.data["grad_norm"] else self._in_a_row[expert] + 1
        if self._in_a_row[expert] != IN_A_ROW:
            return []
        return [
            Finding(
                code="no-gradient",
                severity="warning",
                field=f"multistage.{PANEL[expert]}",
                message=f"the {expert.replace('_', '-')} expert's LoRA gets no gradient: it was 0 in its last"
                f" {IN_A_ROW} steps, and their losses were not. It learns nothing",
                fix="Stop the job: this is a fault of the code that computes the blocks. Another"
                " quantization.transformer takes other code; please report it with this run's events.jsonl",
            )
        ]

    def _trains(self, clip: str) -> bool:
        """By the number of its dataset, with which a clip's id begins."""
        number = clip.partition("/")[0]
        return not (number.isdecimal() and int(number) < len(self._weights)) or self._weights[int(number)] > 0
