import pytest
import torch
from diffusers import WanImageToVideoPipeline

from engine.base import BaseFolder
from engine.text import MAX_TOKENS, encode_texts

CPU = torch.device("cpu")
TEXTS = ["orbit around the red ball", "", "a  \n b &amp; c", "orbit " * 400]


def encode(tiny, precision):
    seen = []
    book = encode_texts(
        BaseFolder(tiny, 0.9, 5.0, "x"), TEXTS, device=CPU, dtype=torch.float32, precision=precision, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    return book


def test_embeddings_are_the_pipelines_own(tiny):
    """Including the empty text, text that needs cleaning, and text that is cut at 512 tokens."""
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    with torch.no_grad():
        theirs = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    ours = encode(tiny, "none").batch(TEXTS, device=CPU)
    assert ours.shape == (len(TEXTS), MAX_TOKENS, pipe.text_encoder.config.d_model)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for i, text in enumerate(TEXTS):  # alone, as they are encoded: bit for bit
        with torch.no_grad():
            assert torch.equal(encode(tiny, "none").batch([text], device=CPU), pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=512)[0]), i


@pytest.mark.parametrize(("precision", "limit"), [("float8", 0.06), ("qint8", 0.02)])
def test_eight_bits_stay_close(tiny, precision, limit):
    exact, small = (encode(tiny, p).batch(TEXTS, device=CPU) for p in ("none", precision))
    error = (small - exact).norm() / exact.norm()
    assert 0 < error < limit
