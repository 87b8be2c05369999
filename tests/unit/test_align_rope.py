"""Rotary embeddings as numbers: turned and turned back, scaled, and the same as the models' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kava.align.rope import Rotary, rotate, scaled, unrotate
from kava.backbone.families import family_of
from kava.backbone.model import Backbone
from kava.backbone.rotary import read_rotary
from kava.errors import ConfigError, ModelError

LENGTH = 64
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "long_factor": [4.0] * 4, "short_factor": [1.5] * 4, "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


def model(kind: str, base: float = 500.0) -> Backbone:
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, rope_theta=base, rope_scaling={**KINDS[kind], "rope_theta": base},
    )  # fmt: skip
    return Backbone(LlamaForCausalLM(config), family_of(config, kind)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_the_models_own(kind: str) -> None:
    llama = model(kind)
    rotary = llama.rotary
    last = LENGTH if rotary.limit is None else rotary.limit
    place = torch.arange(last)[None]
    theirs = llama.decoder.rotary_emb(torch.zeros(1), place)
    for mine, part in zip(rotary.angles(place), theirs, strict=True):
        torch.testing.assert_close(mine[:, 0], part, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_there_and_back(kind: str, dtype: torch.dtype) -> None:
    rotary = model(kind).rotary
    keys = torch.randn(2, 3, 40, 8, dtype=dtype)
    cos, sin = rotary.angles(torch.arange(40).expand(2, 40))
    turned = rotate(keys, cos, sin)
    assert (turned - keys).abs().max() > 0.5
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(unrotate(turned, cos, sin), keys, atol=tolerance, rtol=tolerance)


def test_a_part_of_the_head_size_is_turned() -> None:
    keys = torch.randn(1, 2, 5, 12)
    cos, sin = scaled(100.0, 4).angles(torch.arange(5)[None])
    turned = rotate(keys, cos, sin)
    assert torch.equal(turned[..., 4:], keys[..., 4:])
    assert torch.equal(turned[..., :4], rotate(keys[..., :4], cos, sin))
    torch.testing.assert_close(unrotate(turned, cos, sin), keys)
    with pytest.raises(ModelError, match="4 dimensions cannot turn keys of size 2"):
        rotate(keys[..., :2], cos, sin)


def test_scores_depend_on_the_distance_alone() -> None:
    """Half-split pairs: q at p and k at p - 3 score the same for every p, whole or not."""
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rotary = Rotary(scaled(50.0, 8).inv_freq.double())
    scores = []
    for place in (3.0, 10.5, 40.0):
        at = [rotary.angles(torch.tensor([[spot]], dtype=torch.float64)) for spot in (place, place - 3)]
        scores.append((rotate(query, *at[0]) * rotate(key, *at[1])).sum())
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_half_precision_keys_stay_half() -> None:
    keys = torch.randn(1, 1, 4, 8).bfloat16()
    cos, sin = scaled(100.0, 8).angles(torch.arange(4)[None])
    turned = rotate(keys, cos, sin)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(keys.float(), cos, sin).bfloat16())


# -- scaling -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "linear", "ntk", "dynamic"])
def test_a_ratio_of_one_changes_nothing(method: str) -> None:
    plain = model("default").rotary.inv_freq
    assert torch.equal(scaled(500.0, 8, method, 128, 128).inv_freq, plain)
    assert torch.equal(scaled(500.0, 8, method, 128, 128, exponent=2 / 3).inv_freq, plain)


def test_what_each_method_does() -> None:
    plain = scaled(500.0, 8).inv_freq
    torch.testing.assert_close(scaled(500.0, 8, "linear", 32, 128).inv_freq, plain / 4)
    ntk = scaled(500.0, 8, "ntk", 32, 128).inv_freq
    assert ntk[0] == plain[0]  # the fastest stays, the slowest is stretched by the ratio
    torch.testing.assert_close(ntk[-1], plain[-1] / 4)
    other = scaled(500.0, 8, "ntk", 32, 128, exponent=2 / 3).inv_freq
    torch.testing.assert_close(other, scaled(500.0 * 4 ** (2 / 3), 8).inv_freq)
    torch.testing.assert_close(scaled(500.0, 8, "ntk", 128, 32).inv_freq[-1], plain[-1] * 4)
    assert torch.equal(scaled(500.0, 8, "dynamic", 128, 32).inv_freq, plain)  # shorter texts need nothing
    assert torch.equal(scaled(500.0, 8, "dynamic", 32, 128).inv_freq, ntk)


def test_dynamic_is_the_rule_of_transformers() -> None:
    embedding = model("dynamic").decoder.rotary_emb
    length = 3 * LENGTH
    cos, _ = embedding(torch.zeros(1), torch.arange(length)[None])
    mine, _ = scaled(500.0, 8, "dynamic", LENGTH, length, factor=2.0).angles(torch.arange(length)[None])
    torch.testing.assert_close(mine[:, 0], cos, atol=1e-4, rtol=0)


def test_linear_is_the_rule_of_transformers() -> None:
    assert torch.equal(model("linear").rotary.inv_freq, scaled(500.0, 8, "linear", LENGTH, 4 * LENGTH).inv_freq)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_length_are_refused_beyond_it(kind: str) -> None:
    llama = model(kind)
    limit = LENGTH if kind == "dynamic" else 16
    llama.decoder.rotary_emb(torch.zeros(1), torch.arange(limit + 9)[None])  # a long text, read before
    rotary = llama.rotary
    assert rotary.limit == limit
    short = torch.arange(limit)[None]
    torch.testing.assert_close(rotary.angles(short)[0][:, 0], model(kind).decoder.rotary_emb(torch.zeros(1), short)[0])
    with pytest.raises(ModelError, match=f"change beyond {limit} tokens"):
        rotary.angles(torch.tensor([[limit]]))


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="unknown rotary scaling 'yarn'"):
        scaled(500.0, 8, "yarn")
    with pytest.raises(ConfigError, match="size 7"):
        scaled(500.0, 7)
    with pytest.raises(ConfigError, match="divides by size - 2"):
        scaled(500.0, 2, "ntk", 32, 64)
    with pytest.raises(ModelError, match=r"elsewhere: .* no frequencies that hold for all layers"):
        read_rotary(torch.nn.Identity(), "elsewhere")
