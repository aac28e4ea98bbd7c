"""Products of 8-bit integers in plain torch: exact sums, both directions from one copy, what the rotation is for."""

import pytest
import torch

from engine.system.keyed_random import keyed_rng
from engine.wan.frozen_linear import frozen_linear, unpack_weight
from engine.wan.int8_linear import Int8Product, pack_int8, unpack_int8
from engine.wan.int8_ops import int8_product, rotated, rotated_int8, side_of, turned
from engine.wan.quantize import pack

WIDTHS = [(512, 768), (96, 320), (7, 33)]  # outputs, inputs; rotated by 256, by less, and not at all


def normal(*shape: int, key: str = "w") -> torch.Tensor:
    return torch.from_numpy(keyed_rng(0, key, *shape).standard_normal(shape, dtype="float32"))


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.detach().double() - right.double()).norm() / right.double().norm())


def outliers(columns: int) -> torch.Tensor:
    """The size of each channel: every hundredth is 50 times as large."""
    return torch.where(torch.arange(columns) % 100 == 3, 50.0, 1.0)


def test_a_rotation_is_orthogonal_and_its_own_inverse() -> None:
    for columns, side in ((5120, 256), (13824, 256), (320, 64), (33, 1), (8, 8)):
        assert side_of(columns) == side
        x = normal(3, columns)
        torch.testing.assert_close(turned(turned(x, side), side), x)
        torch.testing.assert_close(turned(x, side).norm(dim=1), x.norm(dim=1))
    spike = torch.zeros(1, 512)
    spike[0, 300] = 16.0
    assert torch.equal(turned(spike, 256).abs(), torch.cat([torch.zeros(256), torch.ones(256)])[None])


def test_the_product_is_the_exact_sum_of_the_codes() -> None:
    a, b = (torch.randint(-127, 128, (n, 13824), dtype=torch.int8) for n in (5, 8))
    one = torch.ones(5, 1)
    right = a.long() @ b.long().t()
    assert torch.equal(int8_product(a, one, b, None, torch.float32), right.float())
    everywhere = torch.full_like(a, 127)  # the largest sum there is does not run over
    assert int8_product(everywhere, one, everywhere, None, torch.float32).unique().tolist() == [127.0**2 * 13824]


def test_a_row_of_zeros_stays_one() -> None:
    q, scale = rotated_int8(torch.zeros(2, 64), None, 64, 1e-6)
    assert not q.any() and bool((scale > 0).all())


@pytest.mark.parametrize(("n", "k"), WIDTHS)
def test_what_is_packed_stands_for_the_weight(n: int, k: int) -> None:
    w = normal(n, k)
    q, scale = pack_int8(w)
    assert q.dtype == torch.int8 and (q.shape, scale.shape) == ((n, k), (n, 1)) and int(q.abs().max()) == 127
    assert apart(unpack_int8(q, scale), w) < 0.012
    assert torch.equal(unpack_weight(pack(w, "int8"), "int8", torch.float32), unpack_int8(q, scale))


@pytest.mark.parametrize(("n", "k"), WIDTHS)
def test_both_directions_are_those_of_the_weight(n: int, k: int) -> None:
    """Of the weight that is held, so that what is left is the rounding of activations and gradients."""
    packed, bias = pack_int8(normal(n, k)), normal(n, key="bias")
    w = unpack_int8(*packed)
    x, g = normal(2, 50, k, key="x").requires_grad_(), normal(2, 50, n, key="g")
    y = frozen_linear(x, packed, bias, "int8")
    y.backward(g)
    assert y.shape == (2, 50, n) and x.grad is not None
    assert apart(y - bias, x.detach() @ w.t()) < 0.011 and apart(x.grad, g @ w) < 0.013
    again = x.detach().clone().requires_grad_()
    y_again = frozen_linear(again, packed, bias, "int8")
    y_again.backward(g)
    assert torch.equal(y, y_again) and again.grad is not None and torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "traced"])
def test_types_are_those_of_the_activations(compiled: bool) -> None:
    packed, bias = pack_int8(normal(64, 128)), normal(64).bfloat16()

    def of(x: torch.Tensor) -> torch.Tensor:
        return frozen_linear(x, packed, bias, "int8")

    x = normal(1, 20, 128).bfloat16().requires_grad_()
    run = torch.compile(of, backend="aot_eager", fullgraph=True) if compiled else of
    y = run(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y, of(x))


def errors(w: torch.Tensor, x: torch.Tensor, g: torch.Tensor, most: int) -> tuple[float, float]:
    """Of the output and of the input gradient, with rotations of so many columns."""
    leaf = x.clone().requires_grad_()
    y = Int8Product.apply(leaf, *pack_int8(w, most), torch.zeros(w.shape[0]), most)
    y.backward(g)
    assert leaf.grad is not None
    return apart(y.detach(), x @ w.t()), apart(leaf.grad, g @ w)


def test_channels_of_outliers_cost_next_to_nothing_where_they_are_rotated() -> None:
    n, k = 512, 768
    w = normal(n, k)
    plain = normal(100, k, key="x"), normal(100, n, key="g")
    hard = plain[0] * outliers(k), plain[1] * outliers(n)
    rotated_plain, rotated_hard = errors(w, *plain, 256), errors(w, *hard, 256)
    straight = errors(w, *hard, 1)
    for smooth, spread, bare in zip(rotated_plain, rotated_hard, straight, strict=True):
        assert smooth < 0.014 and spread < 1.3 * smooth and bare > 3 * spread


def test_it_is_nearer_than_float8() -> None:
    w, x, g = normal(512, 768), normal(100, 768, key="x"), normal(100, 512, key="g")
    q, scale = pack(w, "float8")
    held = q.float() * scale
    of_weights_alone = apart(x @ held.t(), x @ w.t()), apart(g @ held, g @ w)
    for ours, theirs in zip(errors(w, x, g, 256), of_weights_alone, strict=True):
        assert ours < theirs / 1.5


def test_the_bias_comes_after_the_rotation() -> None:
    x, bias = normal(3, 512), normal(512, key="bias")
    torch.testing.assert_close(rotated(x, bias, 256), turned(x, 256) + bias)
    assert torch.equal(rotated(x, None, 1), x)
