"""Captions to text embeddings. A job has a finite set of texts, so all are encoded before step 1, and the encoder is
dropped.

With a cache on disk, what was encoded before is read from it, and an encoder that has nothing to do is not loaded at
all.

B batch, S text tokens (512), D text width (4096).
"""

from collections.abc import Callable, Iterable

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # pipeline_wan_i2v has it, too, but asks for torchvision

from engine.encode.tensor_cache import TensorCache, key_of, machinery
from engine.encode.tokenizer import load_tokenizer
from engine.encode.umt5 import encode, load_text_encoder
from engine.system.device import release
from engine.system.placement import Placement
from engine.system.progress import Progress
from engine.weights.base_model import BaseModel
from engine.weights.model_files import ModelFiles
from presets.files import identity

MAX_TOKENS = 512  # what Wan was trained with; longer captions are cut, shorter ones padded with zero rows
FORMAT = 1  # of cached embeddings; a change to what is computed is another number
SHOWN = 60  # letters of a caption in the cache's list


class TextBook(dict[str, torch.Tensor]):
    """Embeddings of known texts (S, D), on the host and without their padding."""

    def batch(self, texts: list[str]) -> torch.Tensor:
        """(B, 512, D) on the host, zero-padded as the Wan pipeline does."""
        first = self[texts[0]]
        out_BSD = torch.zeros(len(texts), MAX_TOKENS, first.shape[1], dtype=first.dtype)
        for i, text in enumerate(texts):
            out_BSD[i, : len(self[text])] = self[text]
        return out_BSD


@torch.no_grad()
def encode_texts(
    base: BaseModel,
    texts: Iterable[str],
    placement: Placement,
    *,
    precision: str,
    progress: Progress,
    cache: TensorCache | None = None,
) -> TextBook:
    """Encode every text once, as `WanImageToVideoPipeline.encode_prompt` does; the encoder is dropped before returning.

    `precision` is quantization.text_encoder: none, float8 or qint8 (weights only, one scale per row). Texts that
    `cache` holds are read from it, the others are added to it.
    """
    todo = sorted(set(texts))
    count = len(todo)
    source = base.source
    book = TextBook()
    keys: dict[str, str] = {}
    if cache is not None:
        encoder = _encoder_identity(source, precision), machinery(placement)
        keys = {text: key_of("text", FORMAT, *encoder, prompt_clean(text)) for text in todo}
        for text in todo:
            if (rows := cache.get(keys[text])) is not None:
                book[text] = rows
        todo = [text for text in todo if text not in book]
    if todo:
        here = count - len(todo)
        _encode(source, todo, book, placement, precision, lambda done: progress(here + done, count, "captions"))
        release(placement.device)
        if cache is not None:
            for text in todo:
                cache.put(keys[text], book[text], text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")
    progress(count, count, "captions")
    return book


def _encode(
    source: ModelFiles,
    texts: list[str],
    book: TextBook,
    placement: Placement,
    precision: str,
    progress: Callable[[int], None],
) -> None:
    progress(0)
    tokenize = load_tokenizer(source, length=MAX_TOKENS)
    encoder = load_text_encoder(source, placement, precision)
    for done, text in enumerate(texts):
        progress(done)
        ids, mask = tokenize(prompt_clean(text))
        rows = encode(encoder, ids, mask, device=placement.device)
        book[text] = rows[: int(mask.sum())].to(placement.dtype).cpu().clone()


def _encoder_identity(source: ModelFiles, precision: str) -> str:
    """Of all that turns a text into an embedding: the encoder's weights and shape, the tokenizer, the precision."""
    part = source.part("text_encoder")
    return key_of(part.identity(), sorted(part.config.items()), identity(source.tokenizer_files()), precision)
