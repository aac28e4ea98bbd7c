"""Captions to text embeddings. A job has a finite set of texts, so all are encoded before step 1 and the encoder is gone.

B batch, S text tokens (512), D text width (4096).
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean
from transformers import AutoTokenizer, UMT5EncoderModel

from engine.base import BaseFolder
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
    tokenizer: Any = AutoTokenizer.from_pretrained(base.path / "tokenizer")
    encoder: Any = UMT5EncoderModel.from_pretrained(base.path / "text_encoder", dtype=dtype)
    encoder.requires_grad_(False).eval()
    if precision != "none":
        shrink_linears(encoder, precision, device=device)
    encoder.to(device)
    book = TextBook()
    for done, text in enumerate(todo):
        progress(done, len(todo))
        tokens = tokenizer([prompt_clean(text)], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_attention_mask=True, return_tensors="pt")
        rows = encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state[0]
        book.add(text, rows[: int(tokens.attention_mask.sum())].to(dtype).cpu().clone())
    progress(len(todo), len(todo))
    del encoder
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return book
