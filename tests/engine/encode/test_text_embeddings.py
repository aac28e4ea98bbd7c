import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from engine.data.dataset import build_dataset
from engine.encode import text_embeddings as text_module
from engine.encode import umt5
from engine.encode.rowwise_linear import RowwiseLinear, packed_rows
from engine.encode.tensor_cache import TensorCache
from engine.encode.text_embeddings import MAX_TOKENS, encode_texts
from engine.training.prepare import all_texts
from engine.weights.base_model import BaseModel
from engine.weights.load_expert import READERS
from engine.weights.model_files import open_model_files
from presets.caches.tensor_cache import list_tensors
from presets.errors import UserError
from presets.facts.gather import gather
from presets.job.toml_file import load_job
from tests.helpers.jobs import write_job
from tests.helpers.training.placements import ON_CPU

pytestmark = pytest.mark.process  # takes seconds

CPU = torch.device("cpu")
TEXTS = ["orbit around the red ball", "", "a  \n b &amp; c", "orbit " * 400]
FEW = TEXTS[:2]


def encode(tiny, precision):
    seen = []
    book = encode_texts(
        BaseModel(open_model_files(tiny), 0.9, "x"),
        TEXTS,
        ON_CPU,
        precision=precision,
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    return book


def test_embeddings_are_the_pipelines_own(tiny):
    """Including the empty text, text that needs cleaning, and text that is cut at 512 tokens."""
    pipe = WanImageToVideoPipeline.from_pretrained(tiny)
    with torch.no_grad():
        theirs = pipe.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    ours = encode(tiny, "none").batch(TEXTS)
    assert ours.shape == (len(TEXTS), MAX_TOKENS, pipe.text_encoder.config.d_model)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for i, text in enumerate(TEXTS):  # alone, as they are encoded: bit for bit
        with torch.no_grad():
            assert torch.equal(
                encode(tiny, "none").batch([text]),
                pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=512)[0],
            ), i


@pytest.mark.parametrize(("precision", "limit"), [("float8", 0.06), ("qint8", 0.02)])
def test_eight_bits_stay_close(tiny, precision, limit):
    exact, small = (encode(tiny, p).batch(TEXTS) for p in ("none", precision))
    error = (small - exact).norm() / exact.norm()
    assert 0 < error < limit


class Cached:
    """Encodes through a cache and tells how often the encoder itself was loaded."""

    def __init__(self, tiny, folder, monkeypatch):
        self.tiny, self.folder, self.warnings, self.loads = tiny, folder, [], 0
        plain = text_module.load_text_encoder

        def load(*args, **more):
            self.loads += 1
            return plain(*args, **more)

        monkeypatch.setattr(text_module, "load_text_encoder", load)

    def __call__(self, texts=TEXTS, precision="none", *, base=None, cap=2**30):
        cache = TensorCache("texts", warn=self.warnings.append, folder=self.folder, cap=cap)
        return encode_texts(
            BaseModel(open_model_files(base or self.tiny), 0.9, "x"),
            texts,
            ON_CPU,
            precision=precision,
            progress=lambda *_: None,
            cache=cache,
        ).batch(texts)


@pytest.fixture
def cached(tiny, tmp_path, monkeypatch):
    return Cached(tiny, tmp_path / "texts", monkeypatch)


def test_with_everything_cached_the_encoder_is_not_loaded(cached, tiny):
    first = cached()
    assert cached.loads == 1 and len(list_tensors(cached.folder)) == len(TEXTS) and cached.warnings == []
    assert torch.equal(cached(), first) and torch.equal(first, encode(tiny, "none").batch(TEXTS))
    assert cached.loads == 2  # one of them without the cache
    cached([*TEXTS, "a new one"])
    assert cached.loads == 3
    assert {e.about for e in list_tensors(cached.folder)} >= {"orbit around the red ball", "", "a new one"}


def test_the_encoder_is_gone_once_all_is_encoded(tiny, monkeypatch):
    """Nothing holds on to it, so its memory is free before the experts come."""
    plain, loaded = text_module.load_text_encoder, []

    def load(*args, **more):
        model = plain(*args, **more)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(text_module, "load_text_encoder", load)
    book = encode(tiny, "none")
    assert len(loaded) == 1 and loaded[0]() is None
    assert book[TEXTS[0]].untyped_storage().nbytes() == book[TEXTS[0]].nbytes, "nor does a row keep a whole padded text"


def test_what_the_key_of_a_text_holds(cached, tiny, tmp_path):
    cached(FEW)
    cached(FEW, precision="qint8")
    assert cached.loads == 2
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    cached(FEW, base=other)
    assert cached.loads == 2  # the same files in another place
    (other / "tokenizer/tokenizer_config.json").write_text(
        (other / "tokenizer/tokenizer_config.json").read_text() + " "
    )
    cached(FEW, base=other)
    assert cached.loads == 3
    os.utime(other / "text_encoder/model.safetensors")
    cached(FEW, base=other)
    assert cached.loads == 4


def test_texts_and_machines_that_differ_by_little_have_entries_of_their_own(cached, monkeypatch):
    cached(["Orbit"])
    cached(["orbit"])
    cached(["orbit", "Orbit"])
    assert cached.loads == 2
    monkeypatch.setattr(text_module, "machinery", lambda placement: "another card")
    cached(["orbit"])
    assert cached.loads == 3


def test_an_entry_under_another_name_is_not_taken(cached):
    """Sound in itself, but of another text: a copy that went wrong."""
    first = cached(FEW)
    one, other = (next(e.path for e in list_tensors(cached.folder) if e.about == text) for text in FEW)
    shutil.copy(one, other)
    assert torch.equal(cached(FEW), first) and cached.loads == 2 and "made again" in cached.warnings[0]


def test_a_damaged_embedding_is_made_anew(cached):
    first = cached(FEW)
    path = next(e.path for e in list_tensors(cached.folder) if e.about == TEXTS[0])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert (
        torch.equal(cached(FEW), first)
        and cached.loads == 2
        and len(cached.warnings) == 1
        and "made again" in cached.warnings[0]
    )
    path.write_bytes(content[:-5])
    assert torch.equal(cached(FEW), first) and cached.loads == 3 and len(cached.warnings) == 2
    assert torch.equal(cached(FEW), first) and cached.loads == 3


@pytest.mark.parametrize("precision", ["none", "float8"])
def test_the_encoder_is_read_piece_by_piece(tiny, tmp_path, monkeypatch, precision):
    """Shards, bf16, the table under its other name: the weights of from_pretrained, through a handful of buffers."""
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    folder = base / "text_encoder"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors[umt5.TIED] = tensors.pop(umt5.TABLE)
    tensors["decoder.final_layer_norm.weight"] = torch.ones(32)  # passed over, as transformers does
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: t for name, t in tensors.items() if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    places, plain = set(), umt5.weight_of
    monkeypatch.setattr(umt5, "weight_of", lambda raw, *more: (places.add(raw.data_ptr()), plain(raw, *more))[1])
    monkeypatch.setattr(
        umt5, "packed_rows", lambda raw, *more: (places.add(raw.data_ptr()), packed_rows(raw, *more))[1]
    )
    model = umt5.load_text_encoder(open_model_files(base), replace(ON_CPU, dtype=torch.bfloat16), precision)
    theirs = UMT5EncoderModel.from_pretrained(tiny / "text_encoder", dtype=torch.bfloat16).state_dict()
    ours = model.state_dict()
    linears = {
        n
        for n, m in UMT5EncoderModel.from_pretrained(tiny / "text_encoder").named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    assert len(linears) > READERS + 1 >= len(places)
    for name, tensor in theirs.items():
        owner = name.removesuffix(".weight")
        if precision == "none" or owner not in linears:
            assert torch.equal(ours[name], tensor), name
        else:
            q, scale = ours[f"{owner}.q"], ours[f"{owner}.scale"]
            assert (
                q.dtype == torch.float8_e4m3fn
                and (q.float() * scale - tensor.float()).norm() < 0.04 * tensor.float().norm()
            )
    assert set(ours) == {n for n in theirs if precision == "none" or n.removesuffix(".weight") not in linears} | {
        f"{n}.{t}" for n in linears if precision != "none" for t in ("q", "scale")
    }


@pytest.mark.parametrize("precision", ["float8", "qint8"])
def test_rows_are_shrunk_alike_wherever_they_are_cut(precision, monkeypatch):
    weight = torch.randn(7, 16).bfloat16()
    whole = packed_rows(weight, torch.arange(1, 8).view(7, 1).float(), precision)
    monkeypatch.setattr("engine.encode.rowwise_linear.ROWS", 3)
    parts = packed_rows(weight, torch.arange(1, 8).view(7, 1).float(), precision)
    assert torch.equal(whole[0].float(), parts[0].float()) and torch.equal(whole[1], parts[1])
    exact = weight.float() * torch.arange(1, 8).view(7, 1)
    assert (parts[0].float() * parts[1] - exact).norm() < 0.04 * exact.norm() and torch.allclose(
        parts[1].view(-1) * {"float8": 448, "qint8": 127}[precision], exact.abs().amax(1)
    )


def test_stored_float8_rows_are_taken_over():
    q = torch.randn(4, 8).to(torch.float8_e4m3fn)
    ours, scale = packed_rows(q, torch.tensor(0.5), "float8")
    assert torch.equal(ours.float(), q.float()) and torch.equal(scale, torch.full((4, 1), 0.5))
    x = torch.randn(3, 8)
    torch.testing.assert_close(RowwiseLinear(ours, scale)(x), x @ (q.float() * 0.5).T)


def test_numbers_that_are_none_are_named(tiny, tmp_path):
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    file = base / "text_encoder/model.safetensors"
    tensors = load_file(file)
    tensors["encoder.block.1.layer.0.SelfAttention.k.weight"][1, 1] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"SelfAttention\.k\.weight holds values that are no numbers"):
        encode(base, "none")


@pytest.mark.parametrize(
    ("trigger", "expected"), [("frung", {"frung", "orbit frung 0", "ugly"}), ("", {"", "orbit 0", "ugly"})]
)
def test_an_unloaded_encoder_has_seen_the_trigger_alone(tiny, tmp_path, trigger, expected):
    """Or the empty prompt; and what previews need."""
    path = write_job(
        tmp_path,
        tiny,
        trigger=trigger,
        unload_text_encoder=True,
        sample={"negative": "ugly"},
        dataset={"caption_dropout": 0.0},
    )
    job = load_job(path)
    items = build_dataset(job, tmp_path, gather(job, tmp_path, out=tmp_path, scenes=False).datasets)
    assert all_texts(job, items) == expected
