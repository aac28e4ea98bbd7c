"""What quanto quantizes, our layout holds: to the bit, for every precision, without its compiled extension."""

from types import SimpleNamespace

import pytest
import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, QLinear, qfloat8, qint4, qint8, quantize_weight
from optimum.quanto.library.extensions import cpp

from engine.wan.frozen_linear import pack_float8, unpack_weight
from engine.wan.quantize_quanto import SMALLEST_SCALE, LeastSquares, group_size, pack_weight_quanto

QTYPES = {"qint8": qint8, "qfloat8": qfloat8}


def weights(n: int, k: int, *, heavy: bool = False) -> torch.Tensor:
    g = torch.Generator().manual_seed(n + k)
    w = torch.randn(n, k, generator=g) * 0.02
    return w * torch.randn(n, k, generator=g).abs().exp() if heavy else w


@pytest.fixture(autouse=True)
def no_extension(monkeypatch):
    """quanto compiles its `unpack` at first use; here using it is a failure."""

    def unpack(*_):
        raise AssertionError("quanto's compiled unpack was used")

    monkeypatch.setattr(cpp.ext, "_lib", SimpleNamespace(unpack=unpack))


@pytest.fixture
def quantos_own(monkeypatch):
    """What its `unpack` computes, in torch: the two halves of the rows lie in the low and the high half of the
    bytes."""
    monkeypatch.setattr(
        cpp.ext,
        "_lib",
        SimpleNamespace(
            unpack=lambda p, bits: torch.cat([(p >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)])
        ),
    )


def by_quanto(w: torch.Tensor, optimizer) -> torch.Tensor:
    """What quanto makes of 4 bits with one of its optimizers."""
    scale, shift = optimizer(w, qtype=qint4, axis=0, group_size=group_size(w.shape[1]))
    return quantize_weight(w, qint4, 0, scale, shift, group_size(w.shape[1])).dequantize()


@pytest.mark.parametrize("precision", ["qint8", "qfloat8"])
@pytest.mark.parametrize("heavy", [False, True])
def test_8_bits_dequantize_to_quantos_own_values(precision, heavy):
    w = weights(48, 256, heavy=heavy)
    qtype = QTYPES[precision]
    expected = quantize_weight(w, qtype, 0, AbsmaxOptimizer()(w, qtype=qtype, axis=0)).dequantize()
    packed = pack_weight_quanto(w, precision)
    assert [type(t) for t in packed] == [torch.Tensor] * 2
    assert torch.equal(unpack_weight(packed, precision, torch.float32), expected)
    if precision == "qfloat8":
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(packed, pack_float8(w), strict=True)), (
            "and so does our own float8"
        )


@pytest.mark.parametrize("k", [96, 160, 256])
@pytest.mark.parametrize("heavy", [False, True])
def test_4_bits_dequantize_to_quantos_own_values(quantos_own, k, heavy):
    w = weights(48, k, heavy=heavy)
    expected = by_quanto(w, LeastSquares())
    packed = pack_weight_quanto(w, "qint4")
    assert [type(t) for t in packed] == [torch.Tensor] * 3
    assert torch.equal(unpack_weight(packed, "qint4", torch.float32), expected)


def test_4_bits_are_codes_two_to_a_byte_with_step_and_minimum_of_the_group():
    """Weights that lie on a grid stay on it, so the codes are known."""
    grid = torch.randint(0, 16, (32, 2, 128), generator=torch.Generator().manual_seed(1))
    grid[..., :2] = torch.tensor([0, 15])
    groups = grid.float() * 0.25 - 1.5
    w = groups.view(32, 256)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / 15
    codes = ((groups - low) / step).round().to(torch.uint8).view(32, 256)
    plainly = codes[:, 0::2] | (codes[:, 1::2] << 4), step.squeeze(2), low.squeeze(2)
    for ours, quantos in zip(plainly, pack_weight_quanto(w, "qint4"), strict=True):
        assert ours.dtype == quantos.dtype and torch.equal(ours, quantos)


@pytest.mark.parametrize("k", [24, 96, 128, 160, 192, 200, 256, 5120, 13824])
def test_groups_are_those_of_quantos_linear(k):
    with torch.device("meta"):
        linear = QLinear(k, 4, weights=qint4)
    assert group_size(k) == linear.weight_group_size


@pytest.mark.parametrize("heavy", [False, True])
def test_least_squares_loses_less_than_quantos_default_in_every_group(quantos_own, heavy):
    w = weights(64, 512, heavy=heavy)
    ours = unpack_weight(pack_weight_quanto(w, "qint4"), "qint4", torch.float32)
    lost, theirs = ((value - w).view(-1, 128).square().sum(1) for value in (ours, by_quanto(w, MaxOptimizer())))
    assert lost.sum() < 0.9 * theirs.sum() and bool((lost <= theirs * (1 + 1e-5)).all())


@pytest.mark.parametrize("precision", ["qint8", "qfloat8", "qint4"])
def test_constant_rows_and_groups_stay_what_they_are(precision):
    w = weights(8, 256)
    w[1] = 0
    w[2, :128] = 0.03
    packed = pack_weight_quanto(w, precision)
    value = unpack_weight(packed, precision, torch.float32)
    assert value.isfinite().all() and bool((packed[1] >= SMALLEST_SCALE).all())
    torch.testing.assert_close(value[1], w[1], rtol=0, atol=1e-6)
    if precision == "qint4":
        torch.testing.assert_close(value[2, :128], w[2, :128], rtol=1e-4, atol=0)


def test_16_bit_weights_are_quantized_in_fp32():
    w = weights(16, 256).bfloat16()
    assert all(
        torch.equal(a, b)
        for a, b in zip(pack_weight_quanto(w, "qint4"), pack_weight_quanto(w.float(), "qint4"), strict=True)
    )
