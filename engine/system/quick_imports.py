"""What makes the imports of a trainer quicker: packages that others would import for nothing, and the search for
garbage. No torch."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("accelerate", "bitsandbytes", "peft")


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, these packages are not installed for who looks for them, but for those that are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for no garbage: imports make none, and it would take a sixth of their time. Nor does it look
    through what they have made ever after. For a process that has not imported torch yet; in another nothing is
    changed."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def import_diffusers() -> None:
    """As where nobody has installed what it would import for layers and loaders that no base has here: bitsandbytes
    alone loads torch's compiler, for functions of its own. It remembers what it has found. The optimizer that is
    bitsandbytes' imports it by itself."""
    with without(*UNUSED):
        import diffusers.models.modeling_utils  # noqa: F401
