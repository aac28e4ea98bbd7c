"""Losses against float64 written out here."""

import msgspec
import pytest
import torch

from engine.training.objective import (
    class_prompt,
    distance,
    main_term,
    noised,
    preservation_term,
    preserved_prompt,
    preserves,
)
from presets.job.schema import AdvancedPanel, TrainingPanel

G = torch.Generator().manual_seed(0)
X0, NOISE, P = (torch.randn(2, 16, 3, 4, 4, generator=G) for _ in range(3))


def test_flow_matching_mix_and_target():
    sigma = torch.tensor([0.25, 0.9])
    x_t, target = noised(X0, NOISE, sigma)
    for i, s in enumerate((0.25, 0.9)):
        torch.testing.assert_close(
            x_t[i].double(), (1 - s) * X0[i].double() + s * NOISE[i].double(), rtol=1e-5, atol=1e-6
        )
    assert torch.equal(target, NOISE - X0)


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_distances(kind):
    d = (P.double() - X0.double()).abs()
    expected = {"mse": d**2, "mae": d, "huber": torch.where(d < 1, 0.5 * d**2, d - 0.5)}[kind].mean()
    torch.testing.assert_close(distance(kind, P, X0).double(), expected, rtol=1e-5, atol=1e-6)


def gradient(term, prediction):
    p = prediction.clone().requires_grad_(True)
    loss = term.loss(p)
    loss.backward()
    return loss.detach(), p.grad


def test_huber_turns_from_square_to_line_at_an_error_of_one():
    at = torch.tensor([0.0, 0.5, 1.0 - 1e-4, 1.0 + 1e-4, 3.0, -3.0])
    for error, expected, slope in zip(
        at, [0.0, 0.125, 0.4999, 0.5001, 2.5, 2.5], [0.0, 0.5, 0.9999, 1.0, 1.0, -1.0], strict=True
    ):
        p = error.clone().requires_grad_(True)
        value = distance("huber", p, torch.zeros(()))
        value.backward()
        assert value.item() == pytest.approx(expected, abs=1e-6) and p.grad.item() == pytest.approx(slope, abs=1e-6)


def test_losses_are_taken_in_fp32_whatever_the_model_answers():
    p, goal = P.bfloat16(), X0.bfloat16()
    expected = ((p.double() - goal.double()) ** 2).mean()
    assert distance("mse", p, goal).dtype == torch.float32
    torch.testing.assert_close(distance("mse", p, goal).double(), expected, rtol=1e-5, atol=0)


SCALE = 3.0
# of the error d = p - target: the loss shown, and dloss/dp per element, p in the target held fast; derived by hand
GUIDED = {
    "mse": (lambda d: (SCALE * d) ** 2, lambda d: 2 * SCALE * d),
    "mae": (lambda d: (SCALE * d).abs(), lambda d: d.sign()),
    "huber": (
        lambda d: torch.where((SCALE * d).abs() < 1, 0.5 * (SCALE * d) ** 2, (SCALE * d).abs() - 0.5),
        lambda d: (SCALE * d).clamp(-1, 1),
    ),
}


@pytest.mark.parametrize("kind", GUIDED)
def test_differential_guidance(kind):
    loss, grad = gradient(
        main_term(
            TrainingPanel(loss=kind),
            AdvancedPanel(differential_guidance=True, differential_guidance_scale=SCALE),
            torch.zeros(1),
            X0,
            0.25,
        ),
        P,
    )
    d = P.double() - X0.double()
    value, slope = GUIDED[kind]
    torch.testing.assert_close(loss.double(), 0.25 * value(d).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), 0.25 * slope(d) / d.numel(), rtol=1e-4, atol=1e-9)


def test_with_mse_guidance_is_the_plain_gradient_times_its_scale_and_with_mae_the_plain_one():
    for kind, factor in (("mse", SCALE), ("mae", 1.0)):
        plain = gradient(main_term(TrainingPanel(loss=kind), AdvancedPanel(), torch.zeros(1), X0, 1.0), P)[1]
        guided = gradient(
            main_term(
                TrainingPanel(loss=kind),
                AdvancedPanel(differential_guidance=True, differential_guidance_scale=SCALE),
                torch.zeros(1),
                X0,
                1.0,
            ),
            P,
        )[1]
        torch.testing.assert_close(guided, factor * plain, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("guided", [False, True])
def test_outside_its_mask_a_clip_has_the_gradient_that_the_mask_says_and_inside_the_plain_one(kind, guided):
    """Exactly: a hundredth of the plain gradient where the mask is 0.01, and nothing more than plain where it is 1,
    however little that is."""
    mask = torch.full((2, 1, 3, 4, 4), 0.01)
    mask[0, :, :, :1, :1] = 1
    mask[1] = 1
    panels = TrainingPanel(loss=kind), AdvancedPanel(differential_guidance=guided)
    plain_loss, plain = gradient(main_term(*panels, torch.zeros(1), X0, 0.25), P)
    loss, grad = gradient(main_term(*panels, torch.zeros(1), X0, 0.25, mask), P)
    ratio = (grad / plain).double()
    inside = (mask == 1).expand_as(P)
    torch.testing.assert_close(ratio[inside], torch.ones_like(ratio[inside]), rtol=1e-6, atol=0)
    torch.testing.assert_close(ratio[~inside], torch.full_like(ratio[~inside], 0.01), rtol=1e-5, atol=0)
    assert 0 < loss < plain_loss
    white = gradient(main_term(*panels, torch.zeros(1), X0, 0.25, torch.ones_like(mask)), P)
    torch.testing.assert_close(white[0], plain_loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("training", "name"),
    [
        (TrainingPanel(dop=True, dop_multiplier=2.0), "preservation"),
        (TrainingPanel(blank_prompt_preservation=True, blank_prompt_preservation_multiplier=2.0), "blank_prompt"),
    ],
)
@pytest.mark.parametrize("rows", [[0, 1], [1]])
def test_preservation_pulls_to_the_base_by_its_multiplier(training, name, rows):
    """MSE whatever the main loss is, times multiplier and weight; a sample that preserves nothing is not predicted and
    counts 0."""
    training = msgspec.structs.replace(training, loss="mae")
    term = preservation_term(training, torch.zeros(1), X0[rows], rows, 0.5 * len(rows) / 2)
    loss, grad = gradient(term, P[rows])
    d = P.double() - X0.double()
    for row in {0, 1} - set(rows):
        d[row] = 0
    assert term.name == name
    torch.testing.assert_close(loss.double(), 2 * 0.5 * (d**2).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), (2 * 0.5 * 2 * d / d.numel())[rows], rtol=1e-4, atol=1e-9)


def test_what_is_preserved():
    dop, blank = TrainingPanel(dop=True, dop_class="person"), TrainingPanel(blank_prompt_preservation=True)
    assert preserves(dop) and preserves(blank) and not preserves(TrainingPanel())
    assert [preserved_prompt(dop, c, "frung") for c in ("frung runs", "", "a dog")] == [
        "person runs",
        "person",
        "person",
    ]
    assert [preserved_prompt(blank, c, "frung") for c in ("frung runs", "")] == ["", ""]


def test_class_prompt():
    assert class_prompt("frung walks, frung smiles", "frung", "person") == "person walks, person smiles"
    assert class_prompt("a street", "frung", "person") == "person"
    assert class_prompt("", "frung", "person") == "person"
    assert class_prompt("Frung, young woman", "frung", "person") == "person, young woman"
    assert class_prompt("a woman, man", "man", "person") == "a woman, person"
