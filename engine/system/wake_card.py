"""CUDA's driver opens a card while this process still imports torch. No torch."""

import ctypes
import threading
from contextlib import suppress

DRIVER = "libcuda.so.1"


def wake_card() -> threading.Thread:
    """Begin to open the first card that this process may see: the driver takes a second or more for it, and Python's
    lock is free meanwhile. torch computes in the context that is made here, the card's primary one. Where there is no
    driver or no card, torch is who says so."""
    thread = threading.Thread(target=_open, name="wake-card", daemon=True)
    thread.start()
    return thread


def _open() -> None:
    with suppress(OSError):
        cuda = ctypes.CDLL(DRIVER)
        card, context = ctypes.c_int(), ctypes.c_void_p()
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(card), 0) == 0:
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), card)
