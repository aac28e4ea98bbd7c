"""The text encoder, UMT5, from its files onto the device tensor by tensor.

Each linear is shrunk as it is read, so no memory ever holds the whole encoder in its full precision. The embedding
table, a fifth of the encoder, stays on the host: a text needs few of its rows.

S text tokens, D text width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from engine.encode.rowwise_linear import RowwiseLinear, packed_rows
from engine.system.placement import Placement
from engine.weights.load_expert import read_ahead, require_numbers
from engine.weights.model_files import ModelFiles, Network, weight_of

TABLE, TIED = "shared.weight", "encoder.embed_tokens.weight"  # one tensor by two names; files hold one of them, or both


def load_text_encoder(source: ModelFiles, placement: Placement, precision: str = "none") -> UMT5EncoderModel:
    """Frozen, in eval mode, on the device but for its embedding table. Raises UserError.

    `precision` is that of the linears: none, float8 or qint8.
    """
    device, dtype = placement.device, placement.dtype
    part = source.part("text_encoder")
    with torch.device("meta"):
        model: Any = UMT5EncoderModel(UMT5Config.from_dict(part.config))
    part = _wanted(part, {name: tuple(t.shape) for name, t in model.state_dict().items() if name != TIED})
    model.set_input_embeddings(_table(part, dtype))
    # as they lie in the files
    names = sorted(
        (name for name in part.stored if name != TABLE),
        key=lambda name: (part.stored[name].file, part.stored[name].place.begin),
    )
    for name, (read, scale) in zip(
        names, read_ahead([part.stored[name] for name in names], pinned=placement.pinned), strict=True
    ):
        raw, scale = read.to(device), None if scale is None else scale.to(device)
        require_numbers(raw, name, part.stored[name].file, scale)
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, nn.Linear) and precision != "none":
            assert last == "weight", "the linears of UMT5 have no bias"
            parent, _, attribute = owner.rpartition(".")
            setattr(model.get_submodule(parent), attribute, RowwiseLinear(*packed_rows(raw, scale, precision)))
        else:
            value = weight_of(raw, scale, dtype)
            setattr(
                module,
                last,
                nn.Parameter(value.clone() if value.data_ptr() == read.data_ptr() else value, requires_grad=False),
            )
    assert not any(t.is_meta for t in model.state_dict().values())
    return model.requires_grad_(False).eval()


def encode(model: UMT5EncoderModel, ids: torch.Tensor, mask: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    """Token ids and mask (1, S), on the host -> (S, D) on the device: only the rows of these tokens leave the table."""
    embedded = model.get_input_embeddings()(ids).to(device)
    out: torch.Tensor = model(inputs_embeds=embedded, attention_mask=mask.to(device)).last_hidden_state[0]
    return out


def _wanted(part: Network, shapes: dict[str, tuple[int, ...]]) -> Network:
    """The part with just the encoder's tensors, each checked. Others may lie beside them, such as a decoder's."""
    stored = dict(part.stored)
    if TIED in stored:
        tied = stored.pop(TIED)
        stored.setdefault(TABLE, tied)
    part = replace(part, stored={name: s for name, s in stored.items() if name in shapes})
    part.require(shapes)
    return part


def _table(part: Network, dtype: torch.dtype) -> nn.Embedding:
    table = part.stored[TABLE].read(dtype)
    require_numbers(table, TABLE, part.stored[TABLE].file)
    return nn.Embedding.from_pretrained(table, freeze=True)
