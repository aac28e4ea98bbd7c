"""Counter-based random numbers: every draw is a pure function of (seed, purpose, key), never of hidden state.

So a resumed run, a retried step and another number of data workers see the same noise, timesteps and dropout.
Draws are made on the CPU in numpy's Philox, so they do not depend on the card either.
Imports no torch: data workers use it too.
"""

import hashlib

import numpy as np


def keyed_rng(seed: int, purpose: str, *key: int | str) -> np.random.Generator:
    """The generator of one draw, e.g. `keyed_rng(job_seed, "noise", step, clip_id)`."""
    text = "\x1f".join([str(seed), purpose, *map(str, key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
