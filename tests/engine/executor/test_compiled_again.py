"""What torch.compile has made of the block's functions is found by the next start."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from engine.executor.executor_resources import _compiled, norms_again, norms_and_gelu_again
from engine.wan.frozen_linear import frozen_linear, pack_float8

pytestmark = pytest.mark.process  # for its length
# What is kept is the traced graph. Without C++ for its operations it is made in a tenth of the time; a torch that does
# not know the setting compiles C++.
WITHOUT_CPP = {"disable_cpp_codegen": True} if hasattr(inductor, "disable_cpp_codegen") else {}


@pytest.mark.parametrize("backend", ["inductor", norms_again, norms_and_gelu_again])
def test_a_later_start_traces_no_autograd_function_anew(backend: Any) -> None:
    packed, bias, x = pack_float8(torch.randn(16, 16)), torch.zeros(16), torch.randn(8, 16, requires_grad=True)

    def product(x: torch.Tensor) -> torch.Tensor:
        return frozen_linear(x, packed, bias, "qfloat8")

    with fresh_cache(), inductor.patch(WITHOUT_CPP):
        for start in ("autograd_cache_miss", "autograd_cache_hit"):
            torch._dynamo.reset()
            counters.clear()
            _compiled(product, backend)(x).sum().backward()
            told = counters["aot_autograd"]
            assert (told[start], told["autograd_cache_bypass"]) == (1, 0), told
    torch._dynamo.reset()
