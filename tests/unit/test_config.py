"""Recipes against the paper's table, one literal each; every way to get a recipe wrong ends in a message that helps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from kava.config import (
    BUILTIN_DATASETS,
    HF_OWNED,
    KEYS,
    METHODS,
    TAGS,
    GeneratorConfig,
    Recipe,
    explain,
    list_recipes,
    load_recipe,
    parse_overrides,
    recipe_path,
    save_recipe,
)
from kava.config.keys import flatten
from kava.config.text import parse_text
from kava.errors import ConfigError

SIX = {  # lr, a1, a2, KV loss, layer-wise std, lambda, projection, weight decay, epochs, accumulation
    "llama1b_aug": (8e-4, 10, 1, "smooth_l1", True, 0.1, True, 0.1, 10, 1),
    "llama1b_aug_nl": (8e-4, 10, 1, "mse", True, 0.1, True, 0.1, 10, 1),
    "qwen05b_aug": (5e-4, 10, 1, "mse", False, 0.1, True, 0.01, 10, 1),
    "qwen05b_aug_nl": (8e-4, 10, 1, "mse", True, 0.1, True, 0.1, 10, 1),
    "llama3b_aug": (2e-4, 20, 2, "smooth_l1", False, 0.1, True, 0.1, 5, 2),
    "llama3b_aug_nl": (2e-4, 20, 2, "smooth_l1", False, 0.0, False, 0.1, 5, 2),
}
MODEL = {
    "llama1b": "meta-llama/Llama-3.2-1B-Instruct",
    "qwen05b": "Qwen/Qwen2.5-0.5B-Instruct",
    "llama3b": "meta-llama/Llama-3.2-3B-Instruct",
}
COMMON = {
    "model.dtype": "bfloat16",
    "model.trust_remote_code": False,
    "dataset.drop_last_step": True,
    "dataset.val_size": 500,
    "latent.num_tokens": 24,
    "latent.num_iterations": 3,
    "latent.method": "jacobi",
    "loss.codi_loss_type": "smooth_l1",
    "loss.std_scope": "sample",
    "loss.student_ce": 1.0,
    "loss.teacher_ce": 1.0,
    "rkv.method": "rkv",
    "rkv.shuffle": "none",
    "rkv.rotary": "after",
    "lora.enabled": True,
    "lora.r": 128,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "lora.target_modules": None,
    "training.batch_size": 128,
    "training.max_steps": None,
    "training.optimizer": "adamw_torch",
    "training.lr_scheduler": "cosine",
    "training.warmup_ratio": 0.05,
    "training.gradient_clipping": 2.0,
    "system.mixed_precision": "bf16",
    "system.num_workers": 4,
    "system.seed": 42,
    "logging.logging_steps": 50,
    "logging.eval_steps": 500,
    "logging.save_steps": 1000,
    "logging.project": "kava-reproduction",
    "evaluation.datasets": ["gsm8k", "gsm8k-hard", "svamp"],
    "evaluation.max_new_tokens": 256,
    "evaluation.temperature": 0.0,
    "evaluation.top_p": 1.0,
    "evaluation.cue": "given",
}
ROW = (
    "training.learning_rate",
    "loss.alpha1_codi",
    "loss.alpha2_kv",
    "loss.kv_loss_type",
    "loss.layerwise_std",
    "rkv.lambda",
    "loss.use_projection",
    "training.weight_decay",
    "training.epochs",
    "training.gradient_accumulation_steps",
)


def flat(recipe: Recipe) -> dict[str, object]:
    return flatten(recipe.to_dict(), "test", None)


@pytest.fixture
def write(tmp_path: Path):
    """A recipe file of the given text, and its path."""

    def file(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return file


def refused(config: str | Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(config, overrides)
    return caught.value


# ---- values


@pytest.mark.parametrize("name", SIX)
def test_six_recipes_say_what_the_table_says(name: str):
    values = flat(load_recipe(name))
    sentences = name.endswith("_nl")
    expected = {
        **COMMON,
        **dict(zip(ROW, SIX[name], strict=True)),
        "model.name": MODEL[name.partition("_")[0]],
        "dataset.name": "whynlp/gsm8k-aug-nl" if sentences else "whynlp/gsm8k-aug",
        "dataset.cot_type": "natural_language" if sentences else "equation",
    }
    assert {key: values[key] for key in expected} == expected


def test_these_recipes_are_shipped():
    several = {"multi_teacher", "multi_teacher_embedded", *(f"phase{n}" for n in range(1, 6))}
    one = {"embedded", "debug", "adaptive", "explicit_hpc", "explicit_embedded"}
    tasks = {"long_chains", "reachability", "multiplication"}
    assert set(list_recipes()) == {*SIX, *one, *several, *tasks}


@pytest.mark.parametrize("name", ["_base", *list_recipes()])
def test_recipes_hold_only_what_differs(name: str):
    data = yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))
    parent = flat(load_recipe(data.pop("extends"))) if "extends" in data else flat(Recipe())
    own = flatten(data, name, KEYS)
    repeated = [key for key, value in own.items() if not key.startswith("about.") and parent[key] == value]
    assert name == "embedded" or not repeated  # `embedded` spells its task out
    assert recipe_path(name).read_text().splitlines()[1].startswith("#")


def test_embedded_runs_from_the_package_alone():
    for name in ("embedded", "debug"):
        recipe = load_recipe(name)
        assert (recipe.model.name, recipe.dataset.name) == ("kava:embedded", "chains")
        assert recipe.evaluation.datasets == ("chains",)
        assert recipe.rkv.method == "steps"
        assert recipe.training.max_steps is not None


@pytest.mark.parametrize("name", ["llama1b_aug", "embedded"])
def test_the_studies_two_controls_are_valid(name: str):
    load_recipe(name, ["latent.num_tokens=0", "loss.alpha1_codi=0", "loss.alpha2_kv=0"])  # no thoughts
    load_recipe(name, ["loss.student_ce=0", "loss.alpha1_codi=0", "loss.alpha2_kv=0"])  # explicit thoughts
    load_recipe(name, ["loss.alpha2_kv=0"])
    load_recipe(name, ["rkv.shuffle=examples"])


# ---- tags


def test_every_value_has_a_tag_and_a_place():
    for name in list_recipes():
        rows = explain(load_recipe(name))
        assert {row.key for row in rows} == {key for key in KEYS if not key.startswith("about.")} - {"training.hf"}
        assert {row.tag for row in rows} <= set(TAGS)
        assert {row.origin for row in rows} <= {"default", *(f"{file}.yaml" for file in ["_base", *list_recipes()])}
        assert all(row.source for row in rows if row.tag != "ours")


def test_tags_follow_the_file_that_set_the_value():
    rows = {row.key: row for row in explain(load_recipe("llama3b_aug_nl", ["lora.r=64"]))}
    assert (rows["rkv.lambda"].tag, rows["rkv.lambda"].origin) == ("noted", "llama3b_aug_nl.yaml")
    assert rows["loss.alpha1_codi"].origin == "llama3b_aug.yaml"
    assert (rows["system.mixed_precision"].tag, rows["system.mixed_precision"].origin) == ("noted", "_base.yaml")
    assert (rows["lora.r"].tag, rows["lora.r"].origin) == ("ours", "command line")
    assert rows["training.warmup_ratio"].tag == "open"
    assert rows["latent.num_tokens"].tag == "known"


def test_defaults_are_known_for_one_row_of_the_table_only():
    def tag(name: str) -> str:
        return next(row.tag for row in explain(load_recipe(name)) if row.key == "loss.kv_loss_type")

    assert tag("llama1b_aug") == "known"
    assert tag("llama3b_aug") == "noted"


# ---- files


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("name", list_recipes())
def test_saved_recipes_load_as_equal_recipes(name: str, suffix: str, tmp_path: Path):
    recipe = load_recipe(name, ["loss.alpha2_kv=0", "training.hf.adam_beta2=0.95"])
    saved = save_recipe(recipe, tmp_path / f"{name}.{suffix}")
    again = load_recipe(saved)
    assert again == recipe
    assert again.about.name == name
    assert Recipe.model_validate(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert (yaml.safe_load if suffix == "yaml" else json.loads)(saved.read_text())["rkv"]["lambda"] is not None


def test_a_file_extends_a_shipped_recipe_or_a_neighbour(write):
    write("extends: qwen05b_aug\nrkv:\n  lambda: 0.3\n", "parent.yaml")
    recipe = load_recipe(write("extends: parent.yaml\ntraining: {batch_size: 32}\nlora:\n", "child.yaml"))
    assert (recipe.rkv.lambda_, recipe.training.batch_size, recipe.training.learning_rate) == (0.3, 32, 5e-4)
    assert recipe.about.name == "child"
    assert recipe.about.title == ""


def test_numbers_and_words_mean_what_they_look_like(write):
    text = """
    training: {learning_rate: 1e-3, hf: {adam_epsilon: 1e-6}}
    system: {mixed_precision: no}
    rkv: {shuffle: true, method: right_crop}
    loss: {kv_loss_type: SmoothL1}
    """
    recipe = load_recipe(write(text))
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.hf == {"adam_epsilon": 1e-6}
    assert recipe.system.mixed_precision == "no"
    assert (recipe.rkv.shuffle, recipe.rkv.method, recipe.loss.kv_loss_type) == ("time", "crop", "smooth_l1")


# ---- overrides


@pytest.mark.parametrize(
    "words",
    [
        ["training.batch_size=64", "rkv.lambda=1e-1"],
        ["--training.batch_size", "64", "--rkv.lambda", "0.1"],
        ["--training.batch-size=64", "rkv.lambda=.1"],
    ],
)
def test_three_ways_to_write_an_override(words: list[str]):
    assert parse_overrides(words) == {"training.batch_size": 64, "rkv.lambda": 0.1}


def test_overrides_of_text_and_lists():
    words = ["model.revision=1e10", "model.name=a: [b", "evaluation.datasets=[svamp]", "lora.target_modules=q_proj"]
    recipe = load_recipe("llama1b_aug", words)
    assert (recipe.model.revision, recipe.model.name) == ("1e10", "a: [b")
    assert (recipe.evaluation.datasets, recipe.lora.target_modules) == (("svamp",), ("q_proj",))
    assert load_recipe("llama1b_aug", ["model.revision=null"]).model.revision is None


def test_accumulation_is_read_in_both_places(write):
    load = load_recipe(write("system: {gradient_accumulation_steps: 4}\n"))
    assert load.training.gradient_accumulation_steps == 4
    assert load.system.gradient_accumulation_steps is None
    both = "system: {gradient_accumulation_steps: 4}\ntraining: {gradient_accumulation_steps: %d}\n"
    assert load_recipe(write(both % 4)).training.gradient_accumulation_steps == 4
    assert "set one of them" in str(refused(write(both % 2)))
    twin = ["system.gradient_accumulation_steps=8"]
    assert load_recipe("llama3b_aug", twin).training.gradient_accumulation_steps == 8


# ---- mistakes


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("latent: {num_tokns: 3}", "my.yaml: unknown key 'latent.num_tokns'", "did you mean 'latent.num_tokens'?"),
        ("training: {num_tokens: 3}", "unknown key 'training.num_tokens'", "did you mean 'latent.num_tokens'?"),
        ("trainin: {epochs: 3}", "unknown key 'trainin'", "did you mean 'training'?"),
        ("training: {batch_size: -4}", "my.yaml: training.batch_size = -4 is not valid: needs an integer >= 1", None),
        ("training: {batch_size: true}", "training.batch_size = true is not valid", None),
        ("training: {batch_size: 1.5}", "training.batch_size = 1.5 is not valid", None),
        ("training: {learning_rate: abc}", "learning_rate = abc is not valid: needs a number > 0 and <= 1", None),
        ("rkv: {lambda: 1.1}", "rkv.lambda = 1.1 is not valid: needs a number >= 0 and <= 1", None),
        ("loss: {kv_loss_type: mae}", "needs one of smooth_l1, mse, l1", None),
        ("rkv: {method: unifrom}", "rkv.method = unifrom is not valid", "did you mean 'uniform'?"),
        ("training: 3", "my.yaml: training = 3 is not valid: it is a section of keys", None),
        ("training: {epochs: 1}\ntraining: {epochs: 2}", "line 2: key 'training' appears twice", None),
        ("training: {epochs: 1, epochs: 2}", "key 'epochs' appears twice", None),
        ("training: {epochs", "my.yaml: line", None),
        ("- 1", "is a list, and not a mapping of keys to values", None),
        ("extends: llama1b", "extends 'llama1b': unknown recipe 'llama1b'", "did you mean 'llama1b_aug'?"),
        ("extends: my.yaml", "extends itself", None),
        ("latent: {num_tokens: 0}", "latent.num_tokens = 0", "set loss.alpha2_kv=0"),
        ("rkv: {shuffle: examples}\ntraining: {batch_size: 1}", "training.batch_size = 1", None),
        ("training: {hf: {bf16: true}}", "hf.bf16 is set by system.mixed_precision", None),
        ("dataset: {generator: {min_steps: 4}}", "min_steps = 4 is above max_steps = 3", None),
        ("loss: {student_ce: 0, teacher_ce: 0, alpha1_codi: 0, alpha2_kv: 0}", "nothing would be trained", None),
        ("training: &a\n  hf: {x: *a}", "my.yaml: line 1: found unconstructable recursive node", None),
        ("training: {? [epochs] : 1}", "line 1: a key is a list or a mapping", None),
        ("training: {epochs: " + "[" * 2000 + "]" * 2000 + "}", "nested too deeply", None),
        ("training: {hf: {x: " + "[" * 200 + "]" * 200 + "}}", "nested too deeply", None),
        ('model: {name: "a\\0b"}', "model.name = 'a\\x00b' is not valid: it holds the character '\\x00'", None),
        ("training: {epochs: 99999999999999999999}", "is not valid: integers go up to 4294967295", None),
        ("extends: " + "a" * 5000, "unknown recipe", None),
    ],
)
def test_a_mistake_in_a_file_is_named(write, text: str, message: str, hint: str | None):
    error = refused(write(text))
    assert message in error.message
    assert hint is None or error.hint == hint


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--latent.num_tokns", "3"], "command line: unknown key 'latent.num_tokns'", "latent.num_tokens"),
        (["training.batch_size=-4"], "command line: training.batch_size = -4 is not valid", None),
        (["--training.batch_size", "--lora.r=3"], "training.batch_size has no value", None),
        (["--num_tokens=3"], "unknown flag '--num_tokens'", "latent.num_tokens"),
        (["training=3"], "'training' is a section", "training.epochs"),
        (["fast"], "unexpected 'fast'", "section.key=value"),
        (["rkv.lambda=[1"], "command line: rkv.lambda", None),
        (["training.learning_rate=.nan"], "is not valid", None),
        (["system.seed=99999999999999999999"], "is not valid: integers go up to 4294967295", None),
        (["rkv.method=:X"], "rkv.method = :X is not valid: needs one of rkv", None),
        (["about.title=\x1b[2J"], "about.title = '\\x1b[2J' is not valid: it holds the character '\\x1b'", None),
    ],
)
def test_a_mistake_on_the_command_line_is_named(words: list[str], message: str, hint: str | None):
    error = refused("llama1b_aug", *words)
    assert message in error.message
    assert hint is None or hint in (error.hint or "")


def test_a_recipe_that_is_not_there(tmp_path: Path):
    assert refused("llama1b_agu").hint == "did you mean 'llama1b_aug'?"
    assert "no such recipe file" in refused(tmp_path / "none.yaml").message
    (tmp_path / "gbk.yaml").write_bytes(b"model: {name: \xc4\xe3}")
    assert "UTF-8" in refused(tmp_path / "gbk.yaml").message


@pytest.mark.parametrize(
    "words",
    [
        ["rkv.crop_keep=first"],
        ["rkv.full_slots=true"],
        ["rkv.method=random", "rkv.lambda=0.5"],
        ["loss.alpha2_kv=0", "rkv.shuffle=time"],
        ["loss.alpha2_kv=0", "loss.kv_loss_type=mse"],
        ["loss.alpha1_codi=0", "loss.codi_loss_type=l1"],
        ["lora.enabled=false", "lora.r=8"],
        ["training.max_steps=10", "training.epochs=3"],
        ["latent.method=sequential", "latent.num_iterations=2"],
        ["latent.num_iterations=0", "loss.use_projection=false"],
        ["dataset.generator.max_steps=2"],
        ["dataset.name=chains", "dataset.streaming=true"],
        ["evaluation.top_p=0.9"],
        ["logging.project=mine"],
    ],
)
def test_a_setting_without_effect_is_refused(words: list[str]):
    error = refused("llama1b_aug", *words)
    assert f"{words[-1].partition('=')[0]} has no effect here" in error.message
    assert error.message.startswith("command line: ")


def test_what_a_recipe_chose_may_lose_its_effect_later(write):
    """The command line may switch a term off that the file had settings for; the file itself may not do both."""
    text = "rkv: {method: crop, crop_keep: first}\n"
    assert load_recipe(write(text), ["loss.alpha2_kv=0"]).rkv.crop_keep == "first"
    assert "rkv.method has no effect here" in refused(write(text + "loss: {alpha2_kv: 0}\n")).message


# ---- names that live in two places


def test_names_agree_with_the_rooms_that_own_them():
    from kava.compress import COMPRESSORS
    from kava.data.tasks import TASKS

    assert set(METHODS) == set(COMPRESSORS)
    assert set(BUILTIN_DATASETS) == set(TASKS)
    assert GeneratorConfig() == Recipe().dataset.generator


@pytest.mark.long
def test_owned_arguments_exist():
    from transformers import TrainingArguments

    gone_in_some_version = {"warmup_ratio", "logging_dir", "project"}
    assert set(HF_OWNED) - {field.name for field in dataclasses.fields(TrainingArguments)} <= gone_in_some_version


def test_a_run_saved_by_an_older_version_loads(tmp_path: Path):
    """Keys and whole sections that came later are missing from its file."""
    saved = save_recipe(load_recipe("explicit_embedded"), tmp_path / "recipe.yaml")
    data = yaml.safe_load(saved.read_text(encoding="utf-8"))
    del data["projector"]["match_start"], data["training"]["on_oom"]
    saved.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert load_recipe(saved) == load_recipe("explicit_embedded")
    latent = yaml.safe_load(save_recipe(load_recipe("embedded"), saved).read_text(encoding="utf-8"))
    for section in ("explicit", "teacher", "projector"):
        del latent[section]
    saved.write_text(yaml.safe_dump(latent), encoding="utf-8")
    assert load_recipe(saved) == load_recipe("embedded")


def test_an_error_of_a_section_names_the_section_and_not_a_key_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="command line: mixture: 2 weights for 3 teachers"):
        load_recipe("debug", ["mixture.teachers=[a,b,c]", "mixture.weights=[0.5,0.5]"])
    with pytest.raises(ConfigError, match=r"training\.hf\.max_steps is set by training\.max_steps"):
        load_recipe("debug", ["training.hf.max_steps=3"])
    with pytest.raises(ConfigError, match=r"training\.hf\.use_liger_kernel has no effect: the loss has its own head"):
        load_recipe("debug", ["training.hf.use_liger_kernel=true"])
    assert load_recipe("debug", ["training.hf.use_liger_kernel=false"]).training.hf == {"use_liger_kernel": False}


def test_what_is_read_twice_is_two_things() -> None:
    """A short text is read once and copied: what one caller changes, no other sees; a mistake is named each time."""
    text = "a: &x [1, 2]\nb: *x\n"
    first = parse_text(text, "first")
    assert first["a"] is first["b"]
    first["a"].append(3)
    first["c"] = 4
    assert parse_text(text, "second") == {"a": [1, 2], "b": [1, 2]}
    for label in ("first", "second"):
        with pytest.raises(ConfigError, match=rf"^{label}: line 2: key 'a' appears twice"):
            parse_text("a: 1\na: 2\n", label)
