"""What a kept graph's backward must not make again. Imported where something is compiled: it takes seconds."""

import operator

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

COSTLY = ("wanlora.text_attention.default", "wanlora.int8_product.default")  # engine.wan's own operators


class NeverAgain(CustomGraphPass):
    """Marks our own costly operators in a graph of forward and backward. The compiler knows its own products; an
    operator that it does not know it would take for cheap."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            made_by = node.args[0] if node.target is operator.getitem else node  # one of several outputs
            if str(made_by.target) in COSTLY:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))
