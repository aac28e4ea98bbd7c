"""Losses against float64 written out here."""

import pytest
import torch

from engine.objective import class_prompt, distance, main_term, noised, preservation_term
from presets.job import AdvancedPanel, TrainingPanel

G = torch.Generator().manual_seed(0)
X0, NOISE, P = (torch.randn(2, 16, 3, 4, 4, generator=G) for _ in range(3))


def test_flow_matching_mix_and_target():
    sigma = torch.tensor([0.25, 0.9])
    x_t, target = noised(X0, NOISE, sigma)
    for i, s in enumerate((0.25, 0.9)):
        torch.testing.assert_close(x_t[i].double(), (1 - s) * X0[i].double() + s * NOISE[i].double(), rtol=1e-5, atol=1e-6)
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


def test_differential_guidance_is_the_plain_gradient_times_its_scale():
    training, text = TrainingPanel(), torch.zeros(1)
    plain_loss, plain = gradient(main_term(training, AdvancedPanel(), text, X0, 1.0), P)
    guided_loss, guided = gradient(main_term(training, AdvancedPanel(differential_guidance=True, differential_guidance_scale=3.0), text, X0, 1.0), P)
    torch.testing.assert_close(guided, 3 * plain, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(guided_loss, 9 * plain_loss, rtol=1e-4, atol=1e-6)


def test_preservation_pulls_to_the_base_by_its_multiplier():
    loss, grad = gradient(preservation_term(TrainingPanel(dop=True, dop_multiplier=2.0), torch.zeros(1), X0, [0, 1], 0.5), P)
    torch.testing.assert_close(loss.double(), (2 * 0.5 * (P.double() - X0.double()) ** 2).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, 2 * 0.5 * 2 * (P - X0) / P.numel(), rtol=1e-4, atol=1e-8)


def test_class_prompt():
    assert class_prompt("frung walks, frung smiles", "frung", "person") == "person walks, person smiles"
    assert class_prompt("a street", "frung", "person") == "person"
    assert class_prompt("", "frung", "person") == "person"
    assert class_prompt("Frung, young woman", "frung", "person") == "person, young woman"
    assert class_prompt("a woman, man", "man", "person") == "a woman, person"
