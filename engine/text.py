"""Captions to text embeddings. A job has a finite set of texts, so all are encoded before step 1 and the encoder is gone.

B batch, S text tokens (512), D text width (4096).
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

from engine.base import BaseFolder
from engine.parts import load_text_encoder, load_tokenizer
from engine.rowwise import shrink_linears

MAX_TOKENS = 512  # what Wan was trained with; longer captions are cut, shorter ones padded with zero rows


class TextBook:
    """Embeddings of known texts, kept on the host without their padding."""

    def __init__(self) -> None:
        self._rows: dict[str, torch.Tensor] = {}

    def add(self, text: str, rows_SD: torch.Tensor) -> None:
        self._rows[text] = rows_SD

    def __contains__(self, text: str) -> bool:
        return text in self._rows

    def batch(self, texts: list[str], *, device: torch.device) -> torch.Tensor:
        """(B, 512, D), zero-padded as the Wan pipeline does."""
        first = self._rows[texts[0]]
        out_BSD = torch.zeros(len(texts), MAX_TOKENS, first.shape[1], dtype=first.dtype)
        for i, text in enumerate(texts):
            rows = self._rows[text]
            out_BSD[i, : rows.shape[0]] = rows
        return out_BSD.to(device)


@torch.no_grad()
def encode_texts(
    base: BaseFolder, texts: Iterable[str], *, device: torch.device, dtype: torch.dtype, precision: str, progress: Callable[[int, int], None]
) -> TextBook:
    """Encode every text once, as `WanImageToVideoPipeline.encode_prompt` does; the encoder is dropped before returning.

    `precision` is quantization.text_encoder: none, float8 or qint8 (weights only, one scale per row).
    """
    todo = sorted(set(texts))
    source = base.source
    tokenize = load_tokenizer(source, length=MAX_TOKENS)
    encoder: Any = load_text_encoder(source, dtype=dtype)
    if precision != "none":
        shrink_linears(encoder, precision, device=device)
    encoder.to(device)
    book = TextBook()
    for done, text in enumerate(todo):
        progress(done, len(todo))
        ids, mask = tokenize(prompt_clean(text))
        rows = encoder(ids.to(device), mask.to(device)).last_hidden_state[0]
        book.add(text, rows[: int(mask.sum())].to(dtype).cpu().clone())
    progress(len(todo), len(todo))
    del encoder
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return book
