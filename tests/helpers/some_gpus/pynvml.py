"""NVML with the GPUs whose names stand in a file, one a line, as long as they stand there: for daemons and trainers of
a test, whose cards come and go. All else, and the errors, are the real one's, as in tests/helpers/no_gpus."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_found = PathFinder.find_spec("pynvml", [path for path in sys.path if Path(path).parent != Path(__file__).parents[1]])
assert _found is not None
_spec = spec_from_file_location("real_pynvml", _found.origin)
assert _spec is not None and _spec.loader is not None
_real = sys.modules["real_pynvml"] = module_from_spec(_spec)
_spec.loader.exec_module(_real)
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("__")})
FILE = "WANLORA_TEST_GPUS"


def nvmlInit() -> None:
    pass


def nvmlShutdown() -> None:
    pass


def _there() -> list[str]:
    return Path(os.environ[FILE]).read_text().split()


def nvmlDeviceGetCount() -> int:
    return len(_there())


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    return _there()[index]


def nvmlDeviceGetUUID(card: str) -> str:
    return card


def nvmlDeviceGetName(card: str) -> str:
    return "NVIDIA H100"


def nvmlSystemGetDriverVersion() -> str:
    return "580.65.06"


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return 13000


def nvmlDeviceGetCudaComputeCapability(card: str) -> tuple[int, int]:
    return 9, 0


def nvmlDeviceGetMemoryInfo(card: str) -> Any:
    return SimpleNamespace(total=80 * 2**30, free=79 * 2**30, used=2**30)


def nvmlDeviceGetMigMode(card: str) -> tuple[int, int]:
    raise _real.NVMLError_NotSupported()


def nvmlDeviceGetComputeRunningProcesses(card: str) -> list[Any]:
    return []


nvmlDeviceGetGraphicsRunningProcesses = nvmlDeviceGetComputeRunningProcesses
