"""Adapter files: every form that is about loads to the same factors, and a wrong one is refused with its reason."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters.lora import read_metadata, wan_name
from engine.adapters.recovery_file import find_ara, load_ara, save_ara
from engine.wan.block import LINEARS, linear_shapes
from engine.wan.quantize import fingerprint
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS

BLOCKS, WIDTH, FFN = 2, 8, 12
CONFIG = {"num_attention_heads": 1, "attention_head_dim": WIDTH, "ffn_dim": FFN, "num_layers": BLOCKS}
SHAPES = linear_shapes(CONFIG)
NUMBER = {"high_noise": "transformer_1", "low_noise": "transformer_2"}


def factors(rank: int = 3) -> dict:
    g = torch.Generator().manual_seed(0)
    return {
        expert: [
            {
                name: (torch.randn(rank, k, generator=g).bfloat16(), torch.randn(n, rank, generator=g).bfloat16())
                for name, (n, k) in SHAPES.items()
            }
            for _ in range(BLOCKS)
        ]
        for expert in EXPERTS
    }


def written(
    path: Path,
    naming,
    *,
    metadata: dict | None = None,
    experts=EXPERTS,
    sides=("lora_A.weight", "lora_B.weight"),
    extra: dict | None = None,
) -> Path:
    """A file whose keys are `naming(expert, block, linear).side`."""
    tensors = {
        f"{naming(e, i, name)}.{side}": t.clone()
        for e in experts
        for i, lora in enumerate(factors()[e])
        for name, pair in lora.items()
        for side, t in zip(sides, pair, strict=True)
    }
    save_file(tensors | (extra or {}), path, metadata or {})
    return path


def load(path: Path, *, needed=EXPERTS, identity: str = "abc", low: str = "def", dtype: torch.dtype = torch.bfloat16):
    identities = {"high_noise": identity, "low_noise": low}
    return load_ara(path, config=CONFIG, identities={e: identities[e] for e in needed}, dtype=dtype)


def native(e: str, i: int, name: str) -> str:
    return f"diffusion_model.{NUMBER[e]}.blocks.{i}.{wan_name(name)}"


def same(ara, experts=EXPERTS, factor: float = 1.0) -> bool:
    expected = factors()
    return list(ara.experts) == list(experts) and all(
        torch.equal(a, x) and torch.equal(b, (y.float() * factor).bfloat16())
        for e in experts
        for ours, theirs in zip(ara.experts[e], expected[e], strict=True)
        for (a, b), (x, y) in [(ours[n], theirs[n]) for n in LINEARS]
    )


@pytest.mark.parametrize("naming", [
    native,
    lambda e, i, name: f"transformer.{NUMBER[e]}.blocks.{i}.{wan_name(name)}",
    lambda e, i, name: f"transformer.{NUMBER[e]}.blocks.{i}.{name}",
    lambda e, i, name: f"{NUMBER[e]}.blocks.{i}.{name}",
    lambda e, i, name: f"{'transformer' if e == 'high_noise' else 'transformer_2'}.blocks.{i}.{name}",
], ids=["wan", "ai-toolkit", "ai-toolkit inside", "bare", "diffusers"])  # fmt: skip
def test_every_form_of_both_experts_gives_the_same(tmp_path, naming):
    assert same(load(written(tmp_path / "a.safetensors", naming)))


@pytest.mark.parametrize(
    "sides", [("lora_down.weight", "lora_up.weight"), ("lora_A.default.weight", "lora_B.default.weight")]
)
def test_other_names_of_the_factors(tmp_path, sides):
    assert same(load(written(tmp_path / "a.safetensors", native, sides=sides)))


def test_alpha_is_folded_into_b(tmp_path):
    alphas = {
        f"{native(e, i, name)}.alpha": torch.tensor(1.5) for e in EXPERTS for i in range(BLOCKS) for name in LINEARS
    }
    assert same(load(written(tmp_path / "a.safetensors", native, extra=alphas)), factor=0.5)
    noted = written(
        tmp_path / "b.safetensors",
        native,
        metadata={"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 8}'},
    )
    assert same(load(noted), factor=2.0)


def test_a_file_for_one_expert_says_so_by_its_metadata_or_its_name(tmp_path):
    def naming(e: str, i: int, name: str) -> str:
        return f"diffusion_model.blocks.{i}.{wan_name(name)}"

    noted = written(tmp_path / "a.safetensors", naming, experts=["low_noise"], metadata={"wanlora.expert": "low_noise"})
    named = written(tmp_path / "ara_Low-Noise_v1.safetensors", naming, experts=["low_noise"])
    numbered = written(tmp_path / "ara_low_noise.safetensors", native, experts=["low_noise"])
    for path in (noted, named, numbered):
        assert same(load(path), ["low_noise"])
        with pytest.raises(UserError, match="low noise expert, which this job does not use"):
            load(path, needed=["high_noise"])
    with pytest.raises(UserError, match="does not say which expert"):
        load(written(tmp_path / "c.safetensors", naming, experts=["low_noise"]))
    with pytest.raises(UserError, match="nothing for the high noise expert"):
        load(written(tmp_path / "d.safetensors", native, experts=["low_noise"]))
    assert list(load(written(tmp_path / "e.safetensors", native), needed=["high_noise"]).experts) == ["high_noise"]


def test_ranks_are_filled_with_zeros_to_one_per_linear(tmp_path):
    path = written(tmp_path / "a.safetensors", native)
    tensors = load_file(path)
    key = native("low_noise", 1, "ffn.net.2")
    tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = (
        tensors[f"{key}.lora_A.weight"][:1].clone(),
        tensors[f"{key}.lora_B.weight"][:, :1].clone(),
    )
    save_file(tensors, path)
    a, b = load(path).experts["low_noise"][1]["ffn.net.2"]
    assert a.shape == (3, FFN) and b.shape == (WIDTH, 3)
    x, y = factors()["low_noise"][1]["ffn.net.2"]
    assert torch.equal(b.float() @ a.float(), y[:, :1].float() @ x[:1].float())


def test_linears_left_out_everywhere_are_left_out(tmp_path):
    path = written(tmp_path / "a.safetensors", native)
    save_file({k: v for k, v in load_file(path).items() if "ffn.2" not in k}, path)
    ara = load(path)
    assert all(set(lora) == set(LINEARS) - {"ffn.net.2"} for e in EXPERTS for lora in ara.experts[e])


KEY, BEYOND = native("high_noise", 1, "attn1.to_q"), native("low_noise", 2, "attn1.to_q")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{KEY}.lora_A.weight": None}, "lacks lora_A"),
        ({f"{KEY}.lora_A.weight": None, f"{KEY}.lora_B.weight": None}, "which other blocks have"),
        ({f"{KEY}.lora_A.weight": torch.zeros(3, 9)}, r"shape \(3, 9\), which does not fit blocks.1.attn1.to_q"),
        ({f"{KEY}.lora_B.weight": torch.zeros(8, 2)}, r"different ranks for blocks.1.attn1.to_q"),
        ({f"{KEY}.lora_A.weight": torch.full((3, 8), torch.nan)}, "not finite"),
        ({f"{KEY}.lora_A.weight": torch.zeros(3, 8, dtype=torch.int32)}, "int32 numbers, which are not"),
        ({f"{KEY}.lora_down.weight": torch.zeros(3, 8)}, "which are the same"),
        ({f"{KEY}.dora_scale": torch.zeros(8)}, "dora_scale"),
        ({"diffusion_model.transformer_1.blocks.0.self_attn.qkv.lora_A.weight": torch.zeros(3, 8)}, "qkv"),
        ({"diffusion_model.transformer_1.head.head.diff_b": torch.zeros(8)}, "no part of an accuracy recovery adapter"),
        ({f"{KEY}.diff_b": torch.zeros(8)}, "no part of an accuracy recovery adapter"),
        ({"transformer_1.img_emb.proj.1.diff_b": torch.zeros(8)}, "no part of an accuracy recovery adapter"),
        (
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(3, 8)},
            "in some of its keys and none in others",
        ),
        (
            {f"{BEYOND}.lora_A.weight": torch.zeros(3, 8), f"{BEYOND}.lora_B.weight": torch.zeros(8, 3)},
            "the model's last is 1",
        ),
    ],
    ids=str,
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path, change, words):
    path = written(tmp_path / "a.safetensors", native)
    tensors = load_file(path) | change
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
    with pytest.raises(UserError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.fix


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not safetensors")
    save_file({}, tmp_path / "b.safetensors")
    for name, words in (("a", "no safetensors file"), ("b", "no tensor"), ("c", "no such file")):
        with pytest.raises(UserError, match=words):
            load(tmp_path / f"{name}.safetensors")


def test_saved_and_loaded_again(tmp_path):
    path = tmp_path / "a.safetensors"
    save_ara(
        path,
        factors(),
        rank=3,
        grid="qint4",
        identities={"high_noise": "abc", "low_noise": "def"},
        base="some/base",
        weighting="full",
    )
    ara = load(path)
    assert (
        same(ara)
        and ara.grid == "qint4"
        and read_metadata(path)["wanlora.base"] == "some/base"
        and read_metadata(path)["wanlora.rank"] == "3"
    )
    assert ara.experts["high_noise"][0]["attn1.to_q"][0].dtype is torch.bfloat16
    assert load(path, dtype=torch.float32).experts["high_noise"][0]["attn1.to_q"][0].dtype is torch.float32
    assert f"{native('low_noise', 1, 'ffn.net.2')}.lora_B.weight" in load_file(path)
    with pytest.raises(UserError, match="another base"):
        load(path, identity="other")
    assert same(load(path, needed=["low_noise"], identity="other"), ["low_noise"]), (
        "a job of one expert takes its part of an adapter for both"
    )
    with pytest.raises(UserError, match="another base"):
        load(path, needed=["low_noise"], low="other")
    save_ara(
        path,
        {"low_noise": factors()["low_noise"]},
        rank=3,
        grid="uint4",
        identities={"low_noise": "def"},
        base="b",
        weighting="none",
    )
    assert same(load(path), ["low_noise"]) and load(path).grid == "uint4"


def test_an_adapter_of_another_way_to_round_is_refused(tmp_path):
    metadata = {"wanlora.ara.grid": "qint4", "wanlora.ara.fingerprint": "0" * 16}
    with pytest.raises(UserError, match="rounded weights differently"):
        load(written(tmp_path / "a.safetensors", native, metadata=metadata))
    assert fingerprint("qint4") != fingerprint("uint4")


def test_the_grid_of_a_published_file_is_in_its_name(tmp_path):
    named, unnamed = (
        load(written(tmp_path / "wan22_14b_i2v_torchao_uint4.safetensors", native)),
        load(written(tmp_path / "mine.safetensors", native)),
    )
    assert (named.grid, named.doubts) == ("uint4-bf16", ()), "it assumes weights rounded to bf16"
    assert (
        unnamed.grid == "qint4"
        and "mine.safetensors does not say" in unnamed.doubts[0]
        and "put uint4 into its file name" in unnamed.doubts[0]
    )
    noted = load(written(tmp_path / "noted.safetensors", native, metadata={"wanlora.ara.grid": "qint4"}))
    assert (noted.grid, noted.doubts) == ("qint4", ())
    with pytest.raises(UserError, match="uint3"):
        load(written(tmp_path / "wan22_14b_i2v_torchao_uint3.safetensors", native))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="text-to-image"):
        load(written(tmp_path / "wan22_14b_t2i_torchao_uint4.safetensors", native))
    metadata = {"ss_base_model_version": "wan_2.1"}
    with pytest.raises(UserError, match=r"Wan 2\.1"):
        load(written(tmp_path / "uint4.safetensors", native, metadata=metadata))


def test_finding_the_file_that_a_job_names(tmp_path):
    path = written(tmp_path / "a.safetensors", native)
    assert find_ara("a.safetensors", tmp_path) == find_ara(str(path), Path("/")) == path
    for text in (
        "b.safetensors",
        "owner/repo",
        "../x/y.safetensors",
        "uint4|owner/repo/file.safetensors",
        "owner/repo/file.bin",
    ):
        with pytest.raises(UserError, match="no such file"):
            find_ara(text, tmp_path)
