"""peft and diffusers without bitsandbytes, as the trainer has them: each worker that collects these tests would load
torch's compiler for it."""

from engine.run import import_without_bitsandbytes

import_without_bitsandbytes()
