"""NVML as on a machine without a driver, for the processes of a test: it comes before the real one on their path. Else
daemons of tests would share the machine's GPU, and wait for each other and for whatever its user trains.

All of the real one, but for its beginning. That one has a name of its own and never takes this one's place: a thread
that imports it meanwhile would have half of it.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_found = PathFinder.find_spec("pynvml", [path for path in sys.path if Path(path) != Path(__file__).parent])
assert _found is not None
_spec = spec_from_file_location("real_pynvml", _found.origin)
assert _spec is not None and _spec.loader is not None
_real = sys.modules["real_pynvml"] = module_from_spec(_spec)
_spec.loader.exec_module(_real)
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("__")})


def nvmlInit() -> None:
    raise _real.NVMLError_LibraryNotFound()
