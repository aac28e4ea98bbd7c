"""Steps without a gradient: named after a few of one expert, but not where none is due."""

from presets.diagnosis.gradients import IN_A_ROW, NoGradient
from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.runs.events import Event


def found_at(*steps: dict) -> list[tuple[int, str]]:
    """(number of the step, field) of what is found in these steps."""
    datasets = [DatasetPanel(path="clips"), DatasetPanel(path="kept", weight=0.0)]
    watch = NoGradient(Job(job=JobPanel(name="t"), datasets=datasets))
    usual = {"expert": "high_noise", "loss": 0.1, "grad_norm": 0.0, "clips": ["0/a.mp4@512"]}
    return [
        (number, finding.field)
        for number, step in enumerate(steps, 1)
        for finding in watch.feed(Event(seq=number, time=0.0, run="r", attempt=1, kind="step", data=usual | step))
    ]


def test_some_steps_in_a_row_are_named_once():
    assert found_at(*[{}] * (IN_A_ROW - 1)) == []
    assert found_at(*[{}] * 3 * IN_A_ROW) == [(IN_A_ROW, "multistage.high")]


def test_each_expert_is_counted_by_itself():
    low = {"expert": "low_noise"}
    turns = [low, {}] * IN_A_ROW
    assert found_at(*turns) == [(2 * IN_A_ROW - 1, "multistage.low"), (2 * IN_A_ROW, "multistage.high")]
    assert found_at(*[low | {"grad_norm": 0.2}, {}] * IN_A_ROW) == [(2 * IN_A_ROW, "multistage.high")]


def test_a_step_with_a_gradient_ends_the_row():
    before = [{}] * (IN_A_ROW - 1)
    assert found_at(*before, {"grad_norm": 1e-30}, *before) == []


def test_steps_that_owe_none_are_passed_over():
    """A clip masked all over has a loss of 0; at weight 0 the LoRA is off. The others of a step may owe one."""
    off, black = {"clips": ["1/b.mp4@512"]}, {"loss": 0.0}
    assert found_at(*[off, black] * 2 * IN_A_ROW) == []
    assert found_at(*[off, {}] * IN_A_ROW) == [(2 * IN_A_ROW, "multistage.high")]
    both = {"clips": ["1/b.mp4@512", "0/a.mp4@512"]}
    assert found_at(*[both] * IN_A_ROW) == [(IN_A_ROW, "multistage.high")]
