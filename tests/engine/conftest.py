"""peft and diffusers without bitsandbytes, as the trainer has diffusers: each worker that collects these tests would
load torch's compiler for it."""

from engine.system.quick_imports import without

with without("bitsandbytes"):
    import diffusers.models.modeling_utils  # noqa: F401  (both remember what they have found)
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available

    assert not is_bnb_available() and not is_bnb_4bit_available()
