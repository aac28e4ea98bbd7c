"""Trains one job: clips -> latents -> noise, timestep, expert -> prediction -> loss -> gradient -> checkpoint, sample,
event."""

import logging

# Where bitsandbytes is installed, diffusers imports it unless it is hidden (`engine.run`), and on some CPUs it says
# that a 4-bit product is missing which nothing here asks for. Here, because each program of this floor must have said
# so before it imports diffusers.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
