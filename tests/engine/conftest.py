"""peft and diffusers without bitsandbytes, as the trainer has diffusers: each worker that collects these tests would
load torch's compiler for it."""

import sys

from engine.run import import_without_bitsandbytes

import_without_bitsandbytes()
if "bitsandbytes" not in sys.modules:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    try:
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available  # they remember what they have found

        assert not is_bnb_available() and not is_bnb_4bit_available()
    finally:
        del sys.modules["bitsandbytes"]
