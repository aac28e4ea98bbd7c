"""The best low-rank correction is the best: against the full SVD, against other corrections, and on inputs it never
saw."""

import pytest
import torch

from engine.recovery.input_moments import Moment
from engine.recovery.low_rank import best_correction, krylov_svd
from engine.wan.frozen_linear import unpack_weight
from engine.wan.quantize import INT4, pack


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantization_residual(n: int, k: int, seed: int = 0) -> torch.Tensor:
    w = rand(n, k, seed=seed) * 0.02
    return w - unpack_weight(pack(w, INT4, "qint4"), INT4, torch.float32)


def anisotropic(rows: int, k: int, seed: int) -> torch.Tensor:
    """Inputs whose channels differ in size and vary together, as a transformer's do. The mixing is the same for every
    seed."""
    scale = torch.exp(1.5 * rand(k, seed=100))
    mixing = torch.eye(k) + 0.3 * rand(k, k, seed=101) / k**0.5 + rand(k, 4, seed=102) @ rand(4, k, seed=103) / k**0.5
    return (rand(rows, k, seed=seed) * scale) @ mixing


def moment(x: torch.Tensor, *, full: bool) -> torch.Tensor:
    found = Moment()
    found.add(x, full=full)
    assert found.mean is not None
    return found.mean


def test_plain_is_the_truncated_svd_to_the_last_digit():
    r = quantization_residual(96, 128)
    a, b = best_correction(r, 8)
    u, s, vh = torch.linalg.svd(r)
    torch.testing.assert_close(b @ a, u[:, :8] * s[:8] @ vh[:8], rtol=1e-4, atol=1e-7)
    lost = s[8:].square().sum().sqrt()  # Eckart and Young: no correction of rank 8 leaves less
    torch.testing.assert_close((r - b @ a).norm(), lost, rtol=1e-5, atol=0)


def weighted_error(r: torch.Tensor, a: torch.Tensor, b: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    left = r - b @ a
    return (left if x is None else left @ x.T).square().sum()


@pytest.mark.parametrize("weighting", ["none", "diagonal", "full"])
def test_nothing_near_or_far_does_better(weighting, monkeypatch):
    """Random corrections, random steps from the solution, and gradient descent from it: none lowers the error it
    minimises."""
    monkeypatch.setattr("engine.recovery.low_rank.DAMPING", 0.0)
    r, x = quantization_residual(24, 32), anisotropic(400, 32, seed=1)
    if weighting == "diagonal":
        x = x.square().mean(0).sqrt().diag()
    a, b = best_correction(
        r,
        4,
        moment=(
            None if weighting == "none" else moment(x, full=weighting == "full") * (1 if weighting == "full" else 32)
        ),
    )
    inputs = None if weighting == "none" else x
    best = weighted_error(r, a, b, inputs)
    for seed in range(40):
        size = 10.0 ** -(seed % 4)
        other_a, other_b = (
            a + size * a.std() * rand(*a.shape, seed=seed),
            b + size * b.std() * rand(*b.shape, seed=1000 + seed),
        )
        assert weighted_error(r, other_a, other_b, inputs) > best
        subspace = rand(4, 32, seed=seed)  # with the best B for a random A
        fitted = torch.linalg.lstsq(
            *(((subspace @ x.T).T, (r @ x.T).T) if inputs is not None else (subspace.T, r.T))
        ).solution.T
        assert weighted_error(r, subspace, fitted, inputs) > best
    a, b = a.double().requires_grad_(), b.double().requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=1e-5)
    r64, inputs64 = r.double(), inputs.double() if inputs is not None else None
    for _ in range(100):
        optimizer.zero_grad()
        weighted_error(r64, a, b, inputs64).backward()
        optimizer.step()
    assert float(weighted_error(r64, a, b, inputs64).detach()) >= float(best) * (1 - 1e-5)


def test_weighting_lowers_the_output_error_on_inputs_never_seen():
    r, seen, fresh = quantization_residual(128, 192), anisotropic(4000, 192, seed=1), anisotropic(1000, 192, seed=2)
    left = {}
    for name, m in {"plain": None, "diagonal": moment(seen, full=False), "full": moment(seen, full=True)}.items():
        a, b = best_correction(r, 12, moment=m)
        left[name] = float(((r - b @ a) @ fresh.T).norm() / (r @ fresh.T).norm())
    assert left["full"] < 0.5 * left["diagonal"] and left["diagonal"] < 0.95 * left["plain"] < 0.95, left


def test_inputs_that_are_always_zero_or_lie_in_a_plane_are_no_trouble():
    r, x = quantization_residual(24, 32), anisotropic(100, 32, seed=1)
    x[:, 5:9] = 0
    for m in (
        moment(x, full=False),
        moment(x, full=True),
        moment(x[:3], full=True),
        torch.zeros(32),
        torch.zeros(32, 32),
    ):
        a, b = best_correction(r, 4, moment=m)
        assert a.isfinite().all() and b.isfinite().all()
        assert ((r - b @ a) @ x.T).norm() <= (r @ x.T).norm() * (1 + 1e-5)


@pytest.mark.parametrize("spectrum", ["flat", "falling"])
def test_krylov_finds_what_the_full_svd_finds(spectrum):
    m = quantization_residual(700, 900)
    if spectrum == "falling":
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
        m = u * (s[0] / torch.arange(1, 701) ** 1.0) @ vh
    u, s, vh = krylov_svd(m, 16, key="k")
    exact = torch.linalg.svdvals(m)[:16]
    captured = s.square().sum() / exact.square().sum()
    assert (0.99 if spectrum == "flat" else 0.99999) < captured <= 1 + 1e-5
    torch.testing.assert_close(u.T @ u, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(u.T @ m @ vh.T, s.diag(), rtol=0, atol=float(s[0]) * 1e-4)
    again = krylov_svd(m, 16, key="k")
    assert all(torch.equal(x, y) for x, y in zip((u, s, vh), again, strict=True))


def test_factors_are_balanced():
    a, b = best_correction(quantization_residual(64, 96), 6, moment=torch.rand(96) * 1e6)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-4, atol=0)


def test_moments_add_up_over_calls_and_shapes():
    x = anisotropic(60, 16, seed=3)
    parts = Moment()
    parts.add(x[:20].view(2, 10, 16), full=True)
    parts.add(x[20:], full=True)
    torch.testing.assert_close(parts.mean, x.T @ x / 60)
    torch.testing.assert_close(moment(x, full=True), parts.mean)
    torch.testing.assert_close(moment(x, full=False), x.square().mean(0))
