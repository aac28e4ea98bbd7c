"""Loss spikes: found among losses of like noise, told seldom, the same whenever the same events come."""

import random

import pytest

from presets.diagnosis.loss_spikes import ENOUGH, QUIET, SpikeWatch
from presets.runs.events import Event


def event(n: int, loss: float, *, timestep: float = 950.0, expert: str = "high_noise") -> Event:
    return Event(
        seq=n,
        time=0.0,
        run="r",
        attempt=1,
        kind="step",
        data={"step": n, "expert": expert, "loss": loss, "timestep": timestep, "clips": [f"0/{n}.mp4@512"]},
    )


def run(steps: list[tuple[float, float]]) -> list[str]:
    watch = SpikeWatch()
    return [
        f.message for n, (loss, timestep) in enumerate(steps, 1) for f in watch.feed(event(n, loss, timestep=timestep))
    ]


def usual(n: int, seed: int = 0) -> list[tuple[float, float]]:
    """Losses as flow matching gives them: ten times as large at low noise as at high, with a tenth of noise."""
    rng = random.Random(seed)
    return [
        (0.1 * (1 + 9 * (1 - t / 1000)) * rng.uniform(0.8, 1.25), t) for t in (rng.uniform(0, 1000) for _ in range(n))
    ]


def test_a_spike_names_its_clips_and_timestep():
    (said,) = run([*usual(300), (2.0, 950.0)])
    assert "step 301" in said and "0/301.mp4@512" in said and "timestep 950" in said


@pytest.mark.parametrize("seed", range(5))
def test_usual_losses_are_no_spikes_though_they_differ_tenfold_with_the_timestep(seed):
    assert run(usual(3000, seed)) == []


def test_a_loss_that_is_usual_elsewhere_is_a_spike_here():
    assert run([*usual(300), (1.0, 50.0)]) == []
    assert len(run([*usual(300), (1.0, 990.0)])) == 1


def test_nothing_is_said_before_enough_was_seen():
    assert run([(0.1, 950.0)] * (ENOUGH - 1) + [(9.0, 950.0)]) == []
    assert len(run([(0.1, 950.0)] * ENOUGH + [(9.0, 950.0)])) == 1


def test_a_series_of_spikes_is_told_once_in_a_while():
    steps = usual(300) + [(20 * loss if n % 5 == 0 else loss, t) for n, (loss, t) in enumerate(usual(4 * QUIET, 1))]
    assert [int(said.split()[1].rstrip(":")) for said in run(steps)] == [301, 351, 401, 451]


def test_experts_are_judged_apart():
    watch = SpikeWatch()
    for n in range(ENOUGH):
        assert not watch.feed(event(n, 0.1))
    assert not watch.feed(event(ENOUGH, 5.0, expert="low_noise"))


def test_the_rest_of_a_run_is_judged_the_same_after_its_beginning_was_read_again():
    steps = [*usual(200), (3.0, 950.0), *usual(30, 1), (3.0, 950.0), *usual(60, 2), (3.0, 950.0)]
    whole = SpikeWatch()
    found = [(n, f) for n, (loss, t) in enumerate(steps, 1) for f in whole.feed(event(n, loss, timestep=t))]
    for cut in (190, 210, 240):
        again = SpikeWatch()
        rest = [
            (n, f) for n, (loss, t) in enumerate(steps, 1) for f in again.feed(event(n, loss, timestep=t)) if n > cut
        ]
        assert rest == [x for x in found if x[0] > cut]
    assert len(found) == 2
