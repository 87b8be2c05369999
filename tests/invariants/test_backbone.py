"""The door to transformers: what is captured, what is trained, saved and loaded, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, Qwen2Config

import zoo
from compare import UNEVEN, assert_same, facts, facts_of, measure, objective, plain_attention, tiny_base
from hub import without_hashes
from kava.backbone.artifact import CARD, WEIGHTS, load_student, write_student
from kava.backbone.families import FAMILIES, family_of
from kava.backbone.kv import unrotate
from kava.backbone.load import assemble, build_model, load_teacher
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.config import Recipe, load_recipe
from kava.errors import CheckpointError, ConfigError, KavaError, ModelError
from kava.infer.student import Student
from kava.objective.make import make_objective
from zoo_tokenizers import byte_level

LORA = ("lora.enabled=true", "lora.r=2", "lora.alpha=4", "lora.dropout=0")
every_family = pytest.mark.parametrize("family", list(zoo.FAMILIES))


@cache
def model_of(family: str) -> LatentModel:
    return zoo.latent_model(family)


def recipe_for(base: Path, *settings: str) -> Recipe:
    return load_recipe("debug", [f"model.name={base}", "evaluation.max_new_tokens=6", *settings])


# -- capture ---------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_a_pass_is_the_plain_forward_of_every_row_and_captures_what_the_cache_holds(family: str, side: str) -> None:
    model, batch = model_of(family), zoo.batch(UNEVEN, side)
    ids, mask = batch["question"], batch["question_mask"]
    out = model.run(model.embed(ids), positions(mask), causal_mask(mask), all_layers=True)
    with plain_attention(model) as lm:
        for row, real in enumerate(mask):
            plain = lm.base_model(ids[row][real][None], use_cache=True, output_hidden_states=True)
            pairs = [(out.hidden[row][real], plain.last_hidden_state[0])]
            pairs += [(out.layers[i][row][real], plain.hidden_states[i + 1][0]) for i in range(len(out.layers))]
            for i, layer in enumerate(plain.past_key_values.layers):
                pairs += [(out.keys[i][row][:, real], layer.keys[0]), (out.values[i][row][:, real], layer.values[0])]
            for mine, theirs in pairs:
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@every_family
@torch.no_grad()
def test_a_pass_on_a_prefix_is_the_rest_of_the_whole_pass(family: str) -> None:
    model, batch = model_of(family), zoo.batch(UNEVEN)
    ids, mask = batch["question"], batch["question_mask"]
    whole = model.run(model.embed(ids), positions(mask), causal_mask(mask))
    head, tail, known = ids[:, :2], ids[:, 2:], mask[:, :2]
    first = model.run(model.embed(head), positions(known), causal_mask(known))
    rest = model.run(
        model.embed(tail), positions(mask[:, 2:], known.sum(1)), causal_mask(mask[:, 2:], known), first.kv(slice(None))
    )
    for row, real in enumerate(mask[:, 2:]):
        torch.testing.assert_close(rest.hidden[row][real], whole.hidden[row, 2:][real], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", [name for name in zoo.FAMILIES if name != "gpt2"])
@torch.no_grad()
def test_unrotated_keys_are_the_key_projections_output(family: str) -> None:
    model = model_of(family)
    ids, place = torch.randint(0, 50, (2, 7)), torch.arange(7) + torch.tensor([[0], [11]])
    inputs: dict[int, torch.Tensor] = {}
    handles = [
        layer.self_attn.k_proj.register_forward_hook(lambda _, __, out, i=i: inputs.__setitem__(i, out))
        for i, layer in enumerate(model.decoder.layers)
    ]
    out = model.run(model.embed(ids), place, causal_mask(torch.ones(2, 7, dtype=torch.bool)))
    for handle in handles:
        handle.remove()
    for i, layer in enumerate(model.decoder.layers):
        wanted = inputs[i].unflatten(-1, (model.kv_shape.num_heads, model.kv_shape.head_size))
        if hasattr(layer.self_attn, "k_norm"):
            wanted = layer.self_attn.k_norm(wanted)
        found = unrotate(out.keys[i], model.decoder, place)
        torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-6, atol=1e-6)  # rotary is float32 inside
        assert not torch.allclose(out.keys[i], found, atol=1e-2)


def test_keys_before_rotary_do_not_know_where_they_stood() -> None:
    """The option changes the KV term, alike in every form, and no other term."""
    model = model_of("llama-gqa")
    after = measure(objective(model), zoo.batch(UNEVEN))
    before = measure(objective(model, rotary="before"), zoo.batch(UNEVEN))
    other = measure(objective(model, packed=False, rotary="before"), zoo.batch(UNEVEN, "left"))
    assert abs(float(before[0]["kv"] - after[0]["kv"])) > 1e-3
    assert all(torch.equal(before[0][name], after[0][name]) for name in ("ce_student", "ce_teacher", "codi"))
    assert_same(other, before, 1e-6)


def test_keys_before_rotary_are_refused_where_nothing_rotates() -> None:
    with pytest.raises(ConfigError, match=r"rkv\.rotary"):
        make_objective(load_recipe("debug", ["rkv.rotary=before"]), model_of("gpt2"))


# -- what is trained -------------------------------------------------------------------------------------------------


def lora_model(family: str, tied: bool = False) -> LatentModel:
    """Adapters and special tokens around a tiny model of a family; every trained weight moved off its start."""
    lm = zoo.causal_lm(family, dtype=torch.float32)
    recipe = load_recipe("debug", list(LORA))
    torch.manual_seed(2)
    model = assemble(lm, family_of(lm.config, family), copy.deepcopy(byte_level()), recipe)
    return stir(model)


@torch.no_grad()
def stir(model: LatentModel) -> LatentModel:
    generator = torch.Generator().manual_seed(5)
    for weight in model.trained().values():
        weight += 0.05 * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return model.eval()


@every_family
def test_lora_trains_adapters_three_rows_and_the_projection(family: str) -> None:
    model = lora_model(family)
    trained = model.trained()
    linear = FAMILIES[model.config.model_type].linear
    adapters = [name for name in trained if "lora_A" in name or "lora_B" in name]
    per_layer = len(linear) + ("c_proj" in linear)  # GPT-2 has a c_proj in attention and one in the MLP
    assert len(adapters) == 2 * model.kv_shape.num_layers * per_layer
    assert all(any(f".{name}." in adapter for name in linear) for adapter in adapters)
    rows = [name for name in trained if "token" in name and "project" not in name]
    assert [tuple(trained[name].shape) for name in rows] == [(3, model.config.hidden_size)]
    projection = {f"project.{name}" for name, _ in model.project.named_parameters()}
    assert set(trained) == {*adapters, *rows, *projection}


@every_family
def test_a_step_moves_all_that_is_trained_and_nothing_else(family: str) -> None:
    model = lora_model(family)
    frozen = {n: w.detach().clone() for n, w in model.named_parameters() if not w.requires_grad}
    before = {n: w.detach().clone() for n, w in model.trained().items()}
    ids = torch.arange(model.special.eot + 1)
    table = model.embed(ids).detach()
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.1)
    result = objective(model)(zoo.batch(UNEVEN))
    torch.stack([term.value() for term in result.terms]).sum().backward()
    optimizer.step()
    assert all(torch.equal(weight, frozen[name]) for name, weight in model.named_parameters() if name in frozen)
    still = [name for name, weight in model.trained().items() if torch.equal(weight, before[name])]
    assert still == []
    moved = (model.embed(ids) != table).any(1).nonzero().flatten().tolist()
    assert moved == sorted(model.special.ids)


# -- saved and loaded ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {tied: tiny_base(root / f"tied-{tied}", tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def students(bases: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    """Folders of students that were moved off their start, and the facts about them from before they were saved."""
    root, made = tmp_path_factory.mktemp("students"), {}
    for tied in (False, True):
        for way, settings in (("lora", LORA), ("full", ("lora.enabled=false",))):
            recipe = recipe_for(bases[tied], *settings)
            torch.manual_seed(4)
            model, tokenizer = build_model(recipe)
            student = Student(stir(model), tokenizer, recipe)
            name = f"{way}-{'tied' if tied else 'untied'}"
            made[name] = (root / name, facts_of(student))
            write_student(model, tokenizer, recipe, root / name)
    return made


ALL = ("lora-untied", "lora-tied", "full-untied", "full-tied")


@pytest.mark.parametrize("name", ALL)
def test_trained_names_are_saved_names_are_loaded_names(name: str, students: dict) -> None:
    folder, before = students[name]
    saved = sorted(load_file(folder / WEIGHTS))
    assert before["trained"] == saved == json.loads((folder / CARD).read_text())["trained"]
    assert facts(folder) == before
    assert any("lora_" in weight for weight in saved) == name.startswith("lora")


def test_a_new_process_gives_the_same_loss_answers_and_accuracy(students: dict) -> None:
    code = "import json, sys, compare; print(json.dumps([compare.facts(folder) for folder in sys.argv[1:]]))"
    folders = [str(students[name][0]) for name in ALL]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [students[name][1] for name in ALL]


def test_a_lora_student_carries_no_base_weight_and_takes_another_path_to_it(
    students: dict, bases: dict[bool, Path], tmp_path: Path
) -> None:
    folder, before = students["lora-untied"]
    moved = tmp_path / "moved"
    moved.symlink_to(bases[False])
    model, tokenizer, recipe = load_student(folder, base=str(moved))
    assert facts_of(Student(model, tokenizer, recipe)) == before
    assert (folder / WEIGHTS).stat().st_size < (bases[False] / "model.safetensors").stat().st_size


def test_saving_twice_gives_the_same_bytes_and_replaces_the_folder(students: dict, tmp_path: Path) -> None:
    folder, _ = students["lora-tied"]
    model, tokenizer, recipe = load_student(folder)
    for _ in range(2):
        write_student(model, tokenizer, recipe, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


# -- refusals --------------------------------------------------------------------------------------------------------


def copy_of(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


def test_the_recipe_chooses_between_branches_and_one_dense_mask(bases: dict[bool, Path]) -> None:
    for value, dense in (("branches", False), ("dense", True)):
        recipe = recipe_for(bases[False], f"system.attention={value}")
        assert build_model(recipe)[0].dense_attention is dense
    explicit = load_recipe("explicit_embedded", ["system.attention=dense"])
    student, tokenizer = build_model(explicit)
    assert load_teacher(explicit, tokenizer, torch.device("cpu")).dense_attention
    assert student.dense_attention


def test_torn_weights_are_refused(students: dict, tmp_path: Path) -> None:
    folder = copy_of(students["full-tied"][0], tmp_path / "torn")
    whole = (folder / WEIGHTS).read_bytes()
    for size in (len(whole) - 40, 100, 4, 0):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not the file that was saved"):
            load_student(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_student(folder)
    without_hashes(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_student(folder)


def test_weights_of_another_name_or_shape_are_refused(students: dict, tmp_path: Path) -> None:
    folder = without_hashes(copy_of(students["lora-untied"][0], tmp_path / "other"))
    weights = load_file(folder / WEIGHTS)
    renamed = {name.replace("project.", "projector."): weight for name, weight in weights.items()}
    fewer = {name: weight for name, weight in weights.items() if not name.startswith("project.")}
    wider = {name: torch.cat([weight, weight]) for name, weight in weights.items()}
    for wrong, words in ((renamed, "projector"), (fewer, "missing"), (wider, "shape")):
        save_file(wrong, folder / WEIGHTS)
        with pytest.raises(CheckpointError, match=words):
            load_student(folder)


def test_another_base_is_noticed(students: dict, tmp_path: Path) -> None:
    folder, _ = students["lora-untied"]
    with pytest.raises(CheckpointError, match="not the one"):
        load_student(folder, base=str(tiny_base(tmp_path / "other", seed=1)))


def test_a_folder_that_is_no_student_is_refused(bases: dict[bool, Path], students: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=CARD):
        load_student(bases[False])
    folder = copy_of(students["full-tied"][0], tmp_path / "card")
    for text, words in (('{"format": 1', "JSON"), ('{"format": 99}', "format")):
        (folder / CARD).write_text(text)
        with pytest.raises(CheckpointError, match=words):
            load_student(folder)


def test_unknown_families_and_other_kinds_of_attention_are_refused(tmp_path: Path) -> None:
    bloom = BloomConfig(vocab_size=400, hidden_size=8, n_layer=1, n_head=2)
    chunked = Qwen2Config(
        vocab_size=400, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        layer_types=["chunked_attention", "full_attention"],
    )  # fmt: skip
    for config, words in ((bloom, "bloom"), (chunked, "chunked_attention")):
        folder = tmp_path / config.model_type
        byte_level().save_pretrained(folder)
        config.save_pretrained(folder)
        with pytest.raises(ModelError, match=words):
            build_model(recipe_for(folder))


def test_a_slow_tokenizer_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = copy_of(bases[False], tmp_path / "slow")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    (folder / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(KavaError, match="slow"):
        build_model(recipe_for(folder))


def test_models_that_cannot_be_loaded_are_named(bases: dict[bool, Path], tmp_path: Path) -> None:
    torn = copy_of(bases[False], tmp_path / "torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[:200])
    for folder in (torn, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=str(folder)):
            build_model(recipe_for(folder))
    with pytest.raises(ModelError, match="shipped"):
        build_model(load_recipe("debug", ["model.name=kava:nothing"]))
    with pytest.raises(ConfigError, match="no layer named"):
        build_model(recipe_for(bases[False], *LORA, "lora.target_modules=[query]"))


def test_a_student_that_never_ran_is_still_an_ordinary_model(bases: dict[bool, Path]) -> None:
    """Building a student does not touch the base: the same folder loads as before."""
    before = AutoModelForCausalLM.from_pretrained(bases[True]).state_dict()
    build_model(recipe_for(bases[True], *LORA))
    after = AutoModelForCausalLM.from_pretrained(bases[True]).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
