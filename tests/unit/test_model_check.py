"""`kava model check`: which families pass, that every field of a family's row is measured, and what the command says."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from kava.backbone.families import FAMILIES, REFUSED, Family, family_of
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.cli.main import main
from kava.config import load_recipe
from kava.errors import ConfigError, ModelError
from kava.lab.selfcheck.model_check import run
from kava.lab.selfcheck.model_check.checks import CHECKS, Subject, Unlike
from kava.lab.selfcheck.model_check.double import KeepDouble
from kava.lab.selfcheck.model_check.run import STRANGE, CheckResult
from kava.lab.selfcheck.model_check.small_copy import WINDOW, random_copy, small_config
from kava.objective.make import make_objective

FAST = ("qwen2", "mistral", "granite")  # for these the fast suite runs every check; for all others, the long tests
long = pytest.mark.long
some_or_all = pytest.mark.parametrize("slow", [False, pytest.param(True, marks=long)], ids=["some", "all"])
every_checkpoint = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[long] * (name not in FAST)) for name in zoo.CHECKPOINTS]
)


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three of the checks: enough for what the command says and returns."""
    few = {name: CHECKS[name] for name in ("cache", "logits", "windows")}
    monkeypatch.setattr(run, "CHECKS", few)
    return ["family", "model", *few]


def failures(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.text for result in results if not result.ok}


@every_checkpoint
def test_every_check_passes_for_every_family(name: str) -> None:
    results = run.check_config(zoo.checkpoint_config(name), lambda result: None)
    assert failures(results) == {}
    assert [result.name for result in results] == ["family", "model", *CHECKS]


def test_every_family_of_the_table_is_checked() -> None:
    assert {zoo.checkpoint_config(name).model_type for name in zoo.CHECKPOINTS} == set(FAMILIES)
    assert all(name == row.name for name, row in FAMILIES.items())


# -- the rows --------------------------------------------------------------------------------------------------------

WRONG = {  # another value for each field of a row, and the check that has to fail
    "decoder": ("elsewhere", "cache"),
    "embedding": ("word_embeddings", "layers"),
    "linear": (("q_proj", "dense"), "layers"),
    "conv1d": (None, "layers"),
    "rotary": (None, "rotary"),
    "windows": (None, "windows"),
    "scale": (("hidden_size", 1.0), "attention"),
    "cap": ("num_attention_heads", "attention"),
    "input_scale": ("hidden_size", "inputs"),
    "divisor": ("hidden_size", "logits"),
    "logit_cap": ("num_attention_heads", "logits"),
}


@cache
def copies(family: str) -> tuple[object, object]:
    config = zoo.checkpoint_config(family)
    with KeepDouble():
        return random_copy(config), random_copy(config, force_window=True)


def test_every_field_of_a_row_has_a_wrong_value_here() -> None:
    assert {field.name for field in fields(Family)} == {"name", *WRONG}


@pytest.mark.parametrize(
    ("family", "field"),
    [
        pytest.param(family, field, marks=[long] * (family != ("mistral" if field == "windows" else "granite")))
        for family in FAMILIES
        for field in WRONG
    ],
)
def test_a_wrong_value_in_a_row_fails_the_check_that_measures_it(family: str, field: str) -> None:
    row, (value, check) = FAMILIES[family], WRONG[field]
    right = getattr(row, field)
    empty = Family.__dataclass_fields__[field].default  # Llama's
    wrong = not right if isinstance(right, bool) else empty if right != empty and right in OF_CONFIG else value
    if right == "sqrt" and int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("this transformers scales the embeddings of Gemma 2 in the embedding layer")
    small, windowed = copies(family)
    with KeepDouble(), pytest.raises(STRANGE):
        CHECKS[check](Subject(small, replace(row, **{field: wrong}), windowed, 1e-9))


OF_CONFIG = [
    getattr(row, name) for row in FAMILIES.values() for name in ("scale", "cap", "input_scale", "divisor", "logit_cap")
]


# -- small copies ----------------------------------------------------------------------------------------------------


def test_a_small_copy_keeps_every_kind_of_layer_and_the_shape_of_attention() -> None:
    gemma = small_config(zoo.checkpoint_config("gemma3_text"))
    assert gemma.layer_types == ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    assert gemma.sliding_window == WINDOW
    smol = small_config(zoo.checkpoint_config("smollm3"))
    assert sorted(smol.no_rope_layers) == [0, 0, 1, 1]
    assert (smol.num_attention_heads, smol.num_key_value_heads) == (4, 2)
    assert small_config(zoo.checkpoint_config("llama")).num_hidden_layers == 2
    assert small_config(zoo.checkpoint_config("granite")).embedding_multiplier == 12.0


# -- windows ---------------------------------------------------------------------------------------------------------


def windowed_model(**latent: object) -> LatentModel:
    small, windowed = copies("mistral")
    return Subject(small, FAMILIES["mistral"], windowed, 1e-9).model(windowed, **latent)


def test_a_window_limits_what_reaches_a_token_by_positions_in_its_row() -> None:
    """Two layers with a window of 8: a token hears of the 14 before it, wherever padding stands."""
    model = windowed_model()
    for pads in (0, 5):
        ids = torch.arange(24)[None] % 50
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 9 : 9 + pads] = False  # padding in the middle of the row
        embeds = model.embed(ids).detach().requires_grad_()
        out = model.run(embeds, positions(mask), causal_mask(mask))
        heard = torch.autograd.grad(out.hidden[0, -1].sum(), embeds)[0][0].abs().sum(-1) > 0
        real = mask[0].nonzero().squeeze(1)
        assert heard.nonzero().squeeze(1).tolist() == real[-2 * (WINDOW - 1) - 1 :].tolist()


def test_a_student_reads_its_latents_through_the_window() -> None:
    """With more latents than the window is wide, too: the packed branches see what separate passes see."""
    _, windowed = copies("mistral")
    subject = Subject(windowed, FAMILIES["mistral"], windowed, 1e-9)
    with KeepDouble():
        narrow = subject.loss(num_tokens=WINDOW + 3)
        subject.same_loss(narrow, subject.loss(packed=False, num_tokens=WINDOW + 3), "packed")
        open_row = Subject(windowed, replace(FAMILIES["mistral"], windows=False), windowed, 1e-9)
        with pytest.raises(Unlike):
            subject.same_loss(narrow, open_row.loss(num_tokens=WINDOW + 3), "without a window")


@pytest.mark.parametrize("name", ["gemma3_text", "smollm3"])
def test_keys_before_the_rotary_embedding_need_layers_that_rotate_alike(name: str) -> None:
    """Of the student's own teacher, and of a mixture, which aligns keys in the student's rotary embedding."""
    small = random_copy(small_config(zoo.checkpoint_config(name)))
    model = Subject(small, FAMILIES[name], small, 1e-9).model()
    with pytest.raises(ConfigError, match=f"the layers of {name} rotate keys differently"):
        make_objective(load_recipe("debug", ["rkv.rotary=before"]), model)
    with pytest.raises(ModelError, match=f"{name}: its layers rotate keys differently"):
        _ = model.rotary  # read by `MixtureOfTeachers`


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_family_fails_the_check_it_is_refused_for(name: str) -> None:
    try:
        config = AutoConfig.for_model(name).get_text_config()
    except ValueError:
        pytest.skip(f"this transformers has no {name}")
    config.num_hidden_layers, config.layer_types = 2, ["linear_attention", "full_attention"]
    check, reason = REFUSED[name]
    with pytest.raises(ModelError, match=f"check {check}.*{reason}"):
        family_of(AutoConfig.for_model(name), name)
    with KeepDouble():
        copy = random_copy(config)
    with pytest.raises(ModelError, match="layers 0 keep no keys and values"):
        CHECKS[check](Subject(copy, Family(name), copy, 1e-9))


def test_a_family_without_a_row_is_checked_with_llamas(
    few_checks: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Seed-OSS is built like Llama; Cohere scales its logits."""
    for name, last in (("seed_oss", "not supported yet"), ("cohere", "not supported: family, logits fail")):
        AutoConfig.for_model(name, **_small, head_dim=16, logit_scale=0.3).save_pretrained(tmp_path / name)
        assert main(["model", "check", str(tmp_path / name)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[:-1]] == few_checks
        assert lines[0].startswith("FAIL family")
        assert lines[-1].startswith(last)


# -- the command -----------------------------------------------------------------------------------------------------

_small = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
          "num_hidden_layers": 2, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def test_a_folder_with_a_config_is_enough(
    few_checks: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    zoo.checkpoint_config("olmo2").save_pretrained(tmp_path)
    assert main(["model", "check", str(tmp_path), "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["supported"]
    assert document["family"] == "olmo2"
    assert [check["name"] for check in document["checks"]] == few_checks


@some_or_all
def test_full_checks_the_weights_themselves(
    slow: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not slow:
        request.getfixturevalue("few_checks")
    torch.manual_seed(0)
    larger = {**_small, "vocab_size": 300}  # than that of the small copy, which some checks read as well
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **larger))
    lm.save_pretrained(tmp_path)
    assert main(["model", "check", str(tmp_path), "--full"]) == 0
    assert "supported" in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "model.safetensors").unlink()
    assert main(["model", "check", str(tmp_path), "--full"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("words", [["check"], ["check", "/no/such/folder"], ["check", "a\x07b"], ["chekc", "x"], []])
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2


def test_what_differs_is_named() -> None:
    small, windowed = copies("granite")
    row = replace(FAMILIES["granite"], divisor="")
    with KeepDouble(), pytest.raises(Unlike, match=r"logits: off by"):
        CHECKS["logits"](Subject(small, row, windowed, 1e-9))
