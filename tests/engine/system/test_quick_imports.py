"""What a trainer's imports leave out, and what they leave behind."""

import gc
import subprocess
import sys
from importlib.util import find_spec

import pytest

from engine.system.quick_imports import UNUSED, uncollected, without
from tests.helpers import ROOT


def test_inside_a_package_is_not_installed():
    assert "gguf" in sys.modules or find_spec("gguf") is not None
    loaded = sys.modules.pop("gguf", None)
    try:
        with pytest.raises(ValueError, match="inside"), without("gguf", "msgspec"):
            assert find_spec("gguf") is None
            with pytest.raises(ImportError):
                import gguf  # noqa: F401
            import msgspec  # noqa: F401  (it is loaded already)

            raise ValueError("inside")
        assert "gguf" not in sys.modules and find_spec("gguf") is not None
    finally:
        if loaded is not None:
            sys.modules["gguf"] = loaded


def test_a_process_that_has_torch_collects_as_before():
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


@pytest.mark.process
def test_a_trainer_imports_nothing_that_it_does_not_use():
    code = f"""
import gc, sys
from engine.run import _import_all
_import_all()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
print([name for name in {UNUSED} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
