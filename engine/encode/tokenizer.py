"""The tokenizer of the text encoder: transformers' own files, or the sentencepiece model inside a ComfyUI file.

S text tokens. What becomes of the tokens is engine.encode.umt5's.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer

from engine.weights.model_files import ModelFiles
from presets.errors import UserError

Tokenize = Callable[[str], tuple[torch.Tensor, torch.Tensor]]  # text -> token ids (1, S), attention mask (1, S)


def load_tokenizer(source: ModelFiles, *, length: int) -> Tokenize:
    """A function from a text to `length` tokens: cut after the closing token's place, padded behind it. Raises
    UserError."""
    spiece = source.spiece_model()
    if spiece is None:
        folder = source.tokenizer_files()[0].parent
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as e:  # of whatever kind: its files are somebody else's
            raise UserError(
                f"the tokenizer cannot be read ({str(e).splitlines()[0] if str(e) else type(e).__name__})",
                where=str(folder),
                fix="Download the tokenizer again",
            ) from e

        def by_transformers(text: str) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = tokenizer(
                [text],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            return tokens.input_ids, tokens.attention_mask

        return by_transformers

    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_proto=spiece)
    except RuntimeError as e:
        raise UserError(
            f"the tokenizer in it is damaged ({e})",
            where=str(source.tokenizer_files()[0]),
            fix="Download this file again",
        ) from None

    def by_sentencepiece(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = [*pieces.encode(text)[: length - 1], pieces.eos_id()]
        ids = torch.full((1, length), pieces.pad_id())
        ids[0, : len(tokens)] = torch.tensor(tokens)
        return ids, (torch.arange(length) < len(tokens)).long().unsqueeze(0)

    return by_sentencepiece
