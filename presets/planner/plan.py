"""A memory plan: how the experts are held and run. The planner chooses it, the executor follows it.

The rungs from the fastest to the smallest: kept blocks (no recompute), resident blocks (no copy), everything streamed,
what backward needs in host memory, the token-wise parts in ever smaller chunks.
"""

import math
from functools import lru_cache
from typing import Literal

from msgspec import Struct, field

LESS_MEMORY = (  # for people
    "In order of worth: a smaller entry in datasets.resolutions, fewer num_frames, a smaller quantization, batch_size"
    " 1, ending other programs on the card"
)

Precision = Literal["none", "float8", "int8", "qfloat8", "qint8", "qint4"]


@lru_cache(maxsize=4096)  # hundreds of plans are priced for a job, of a few chunks and sizes of clips
def _chunks(tokens: int, most: int) -> int:
    least = math.ceil(tokens / most) if most else 1
    return next((count for count in range(least, least * 3 // 2 + 1) if tokens % count == 0), least)


# The last block's backward follows its forward at once, and reads ahead for the one before it: what they need takes the
# place of what later blocks read, and would be waited for if it went to the host.
AT_THE_TURN = 2


class Plan(Struct, frozen=True, kw_only=True):
    """One way to run both experts. Block counts are per expert."""

    precision: Precision = "none"  # of the frozen blocks; float8 and int8 also multiply in 8 bits
    resident: int = 0  # blocks whose weights stay on the device
    kept: int = 0  # of the resident ones, blocks that keep their graph and are not recomputed
    # whether those graphs hold what the GELU gives, a row as wide as the feed-forward; else backward makes it again
    keep_gelu: bool = False
    # (rows, blocks kept) by rising rows: batches of fewer rows than the largest leave room for more graphs
    also_kept: tuple[tuple[int, int], ...] = ()
    # where a block's input and attention output wait for its backward; files and events call it `stash`
    activations: Literal["device", "host"] = field(default="host", name="stash")
    # with activations on the host, the last so many of the blocks that recompute: theirs wait on the device, at no copy
    # and no host memory
    activations_on_device: int = field(default=0, name="stash_on_device")
    # whether the hidden state behind a block's self-attention and behind its attention to the text wait there as well:
    # they are not recomputed then
    save_hidden: bool = False
    # tokens at a time in what follows the attention (output projection, cross-attention, feed-forward); 0: all at once
    chunk: int = 0
    slots: int = 3  # device buffers that streamed blocks pass through; 0 when all are resident
    vae_frames: int = 4  # pixel frames the VAE works on at a time; a multiple of 4
    # whether the host's buffers are page-locked: else the driver copies through small ones of its own, and the host
    # waits for it
    pinned: bool = True
    compiled: bool = True
    # compiled for any number of tokens at once (one clip apart from batches), as clips and previews of several sizes
    # need it
    any_size: bool = False
    # blocks of passes of up to so many rows run as CUDA graphs, and all of them recompute; 0: none
    graphed: int = 0

    @property
    def rounds_as(self) -> tuple[object, ...]:
        """What of a plan shows in the last digits of its results. The rest is about where things lie and when they are
        copied."""
        # CUDA graphs themselves round as launched blocks do; those that they keep from keeping their graph do not
        kept = (self.kept, self.also_kept, self.graphed) if self.kept or self.also_kept else ()
        return self.precision, kept, self.save_hidden, self.chunk, self.vae_frames, self.compiled, self.any_size

    def kept_for(self, rows: int) -> int:
        """How many blocks keep their graph in a step of so many rows (batch size times tokens)."""
        if rows <= self.graphed:
            return 0
        return next((kept for most, kept in self.also_kept if rows <= most), self.kept)

    def as_graphs(self, batch: int, tokens: int) -> bool:
        """Whether blocks of such a pass run as CUDA graphs."""
        return batch * tokens <= self.graphed and self.chunks(tokens) == 1

    def chunks(self, tokens: int) -> int:
        """How many runs of tokens, none above `chunk`, the parts after the attention are cut into: the fewest, or up to
        half as many again when those are all alike (a run of another length is another shape to compile)."""
        return _chunks(tokens, self.chunk)

    def longest_run(self, tokens: int) -> int:
        """Tokens of the longest of those runs."""
        return math.ceil(tokens / self.chunks(tokens))

    @property
    def last_on_device(self) -> int:
        """With activations on the host, the last so many blocks that recompute have theirs on the device."""
        return max(self.activations_on_device, AT_THE_TURN)

    def staying(self, waiting: int) -> int:
        """How many of the blocks that wait for their backward do so on the device."""
        return waiting if self.activations == "device" else min(self.last_on_device, waiting)

    @property
    def whole_text(self) -> str:
        """With what is no matter of memory."""
        return (
            f"{self.text}, compiled for {'any' if self.any_size else 'each'} size"
            if self.compiled
            else f"{self.text}, not compiled"
        )

    @property
    def text(self) -> str:
        """One line for people."""
        words = [{"none": "bf16"}.get(self.precision, self.precision)]
        words.append(f"{self.resident} blocks resident" if self.resident else "all blocks streamed")
        if self.resident and self.slots:
            words.append("the others streamed")
        if self.kept or self.also_kept:
            words.append(
                f"{self.kept} kept"
                + (f" (up to {self.also_kept[0][1]} for smaller clips)" if self.also_kept else "")
                + (" with the GELU" if self.keep_gelu else "")
            )
        words.append(
            f"activations on the {'GPU' if self.activations == 'device' else 'host'}"
            + (f" but for {self.last_on_device} blocks" if self.activations_on_device else "")
        )
        if self.save_hidden:
            words.append("hidden states saved")
        if self.chunk:
            words.append(f"{self.chunk} tokens at a time")
        if self.graphed:
            words.append(f"CUDA graphs up to {self.graphed} tokens")
        if not self.pinned:
            words.append("host memory not page-locked")
        return ", ".join(words)
