"""`kava distill`: what each flag of the guides sets, what is refused and why, and what the machine decides."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kava.cli.distill import app, request_of
from kava.cli.distill_flags import read_words
from kava.cli.distill_settings import DistillRequest, DistillRun, resolve, use_cache
from kava.cli.distill_table import BY_NAME, FLAGS, REFUSED
from kava.cli.main import main
from kava.cli.verbs import underscores, verb_command
from kava.config import load_recipe, save_recipe
from kava.config.keys import flatten
from kava.errors import ConfigError
from kava.machine.adapter import EnvironmentAdapter
from machines import builder, fake_torch, gpu

# What each spelling sets, written down a second time: value given -> what the recipe then says.
SETS = {
    "model_name model_name_or_path student_model student_model_name_or_path": [("gpt2", {"model.name": "gpt2"})],
    "teacher_name teacher_model teacher_model_name_or_path": [
        ("gpt2-medium", {"teacher.name": "gpt2-medium"}),
        ("None", {"teacher.name": None}),
    ],
    "torch_dtype": [
        ("float16", {"model.dtype": "float16", "teacher.dtype": "float16"}),
        ("torch.bfloat16", {"model.dtype": "bfloat16", "teacher.dtype": "bfloat16"}),
        ("fp32", {"model.dtype": "float32", "teacher.dtype": "float32"}),
    ],
    "quantization": [("nf4", {"teacher.quantization": "nf4"}), ("8bit", {"teacher.quantization": "int8"})],
    "load_in_4bit": [(None, {"teacher.quantization": "nf4"})],
    "load_in_8bit": [(None, {"teacher.quantization": "int8"})],
    "device_map": [("auto", {"teacher.device_map": "auto"})],
    "teacher_store teacher_stores": [("kv_cache/a", {"teacher.store": "kv_cache/a"})],
    "trust_remote_code": [(None, {"model.trust_remote_code": True, "teacher.trust_remote_code": True})],
    "dataset_name": [("svamp", {"dataset.name": "svamp"})],
    "dataset_config": [("socratic", {"dataset.config": "socratic"})],
    "split dataset_split": [("train", {})],
    "train_file": [("data/own.jsonl", {"dataset.name": "data/own.jsonl", "dataset.config": None})],
    "subset_size max_samples n_samples": [("100000", {"dataset.subset_size": 100000}), ("None", {"dataset.subset_size": None})],
    "streaming": [(None, {"dataset.streaming": True})],
    "max_length": [("1024", {"dataset.max_length": 1024})],
    "batch_size": [("16", {"training.batch_size": 16}), ("auto", {"training.batch_size": 1}),
                   ("probe", {"training.batch_size": 6, "training.gradient_accumulation_steps": 6})],
    "gradient_accumulation_steps gradient_accumulation": [
        ("8", {"training.gradient_accumulation_steps": 8}), ("auto", {"training.gradient_accumulation_steps": 32})],
    "auto_tune": [(None, {"training.batch_size": 1, "training.gradient_accumulation_steps": 32})],
    "epochs": [("3", {"training.epochs": 3, "training.max_steps": None})],
    "max_steps": [("77", {"training.max_steps": 77})],
    "lr learning_rate lr_student": [("2e-5", {"training.learning_rate": 2e-5})],
    "lr_projector": [("5e-4", {"projector.learning_rate": 5e-4})],
    "weight_decay": [("0.02", {"training.weight_decay": 0.02})],
    "warmup_steps": [("150", {"training.warmup_ratio": 0.15})],
    "warmup_ratio": [("0.03", {"training.warmup_ratio": 0.03})],
    "fp16": [(None, {"system.mixed_precision": "fp16"})],
    "bf16": [(None, {"system.mixed_precision": "bf16"})],
    "gradient_checkpointing": [(None, {"training.gradient_checkpointing": True})],
    "on_oom": [("error", {"training.on_oom": "error"})],
    "device": [("cpu", {"system.device": "cpu"})],
    "num_workers": [("3", {"system.num_workers": 3})],
    "kv_method kv_compression": [
        ("full", {"rkv.method": "full"}), ("right_crop", {"rkv.method": "crop"}), ("right", {"rkv.method": "crop"}),
        ("rkv", {"rkv.method": "rkv"}), ("r-kv", {"rkv.method": "rkv"})],
    "kv_weight kv_loss_weight alpha2": [("0.5", {"loss.alpha2_kv": 0.5}), ("0", {"loss.alpha2_kv": 0})],
    "codi_weight": [("0.5", {"loss.alpha1_codi": 0.5})],
    "ce_weight delta_ce": [("0.1", {"loss.student_ce": 0.1})],
    "kv_loss kv_loss_type": [("smoothl1", {"loss.kv_loss_type": "smooth_l1"}), ("mse", {"loss.kv_loss_type": "mse"}),
                             ("cosine", {"loss.kv_loss_type": "cosine"})],
    "target_len": [("16", {"explicit.target_len": 16}, "rkv.method=rkv")],
    "rkv_lambda": [("0.2", {"rkv.lambda": 0.2}, "rkv.method=rkv")],
    "rkv_keep_recent": [("None", {})],
    "shuffle_kv": [(None, {"rkv.shuffle": "time"})],
    "alignment_mode": [("flat", {"explicit.form": "aggregated"}), ("structured", {"explicit.form": "per_layer"})],
    "kv_aggregation_method aggregation_method": [("mean", {"explicit.aggregation": "mean"})],
    "use_all_layers": [(None, {"explicit.use_all_layers": True})],
    "layer_mapping_strategy layer_map_strategy": [("skip", {"explicit.layer_map": "skip"}, "explicit.form=per_layer")],
    "distill_layers": [("0-12", {"explicit.layers": "0-11"}, "explicit.form=per_layer")],
    "distill_k_only": [(None, {"explicit.parts": "k"})],
    "distill_v_only": [(None, {"explicit.parts": "v"})],
    "projector_direction": [("student_to_teacher", {"projector.direction": "student_to_teacher"})],
    "use_attention_weighted_kv use_teacher_attention": [
        (None, {"explicit.attention_weighted": True}, "loss.kv_loss_type=mse")],
    "attention_weighted_kv_warmup": [
        ("500", {"explicit.attention_weighted_after": 500}, "explicit.attention_weighted=true loss.kv_loss_type=mse")],
    "cka_weight": [("0.05", {"explicit.cka_weight": 0.05})],
    "cka_layers": [("last", {"explicit.cka_layers": "last"}, "explicit.cka_weight=0.05"),
                   ("0,5,11", {"explicit.cka_layers": "0,5,11"}, "explicit.cka_weight=0.05")],
    "lambda_k": [("0.5", {"explicit.lambda_k": 0.5})],
    "lambda_v": [("2", {"explicit.lambda_v": 2})],
    "beta_cos": [("0.1", {"explicit.beta_cos": 0.1})],
    "gamma_kl": [("0.01", {"explicit.gamma_kl": 0.01})],
    "phase": [("4", {"mixture.fusion": "learnable", "mixture.per_layer": True}), ("5", {"mixture.space": "z"})],
    "teacher_models": [("gpt2", {"mixture.fusion": "fixed", "model.name": "Qwen/Qwen2.5-0.5B-Instruct"})],
    "teacher_prompts": [("cot", {"projector.trainable": False})],
    "fusion_method fusion_strategy": [("similarity", {"mixture.fusion": "similarity"}, "--phase 3")],
    "fixed_weights": [("0.5,0.3,0.2", {"mixture.weights": [0.5, 0.3, 0.2]}, "--phase 3")],
    "similarity_metric": [("euclidean", {"mixture.similarity": "l2"}, "--phase 3 mixture.fusion=similarity")],
    "prototype_method": [("max", {"mixture.prototype": "max"}, "--phase 3 mixture.fusion=similarity")],
    "num_clusters": [
        ("4", {"mixture.centres": 4}, "--phase 3 mixture.fusion=similarity mixture.prototype=kmeans")],
    "router_type learnable_router_type": [("attention", {"mixture.router": "attention"}, "--phase 4")],
    "entropy_reg_strength entropy_reg_weight router_entropy_weight": [
        ("0.02", {"mixture.entropy_weight": 0.02}, "--phase 4")],
    "entropy_target": [("specialized", {"mixture.entropy": "specialized"}, "--phase 4")],
    "alignment_strategy": [("truncate", {"mixture.time": "truncate"}, "--phase 3"),
                           ("soft_matrix", {"mixture.time": "soft"}, "--phase 3")],
    "rope_scaling_method": [("ntk", {"mixture.rope": "ntk"}, "--phase 3")],
    "layer_mapping_path": [
        ("a.json", {"mixture.layer_map": "cka", "mixture.layer_map_files": ["a.json"]}, "--teacher_models gpt2")],
    "use_cka_layer_mapping": [
        (None, {"mixture.layer_map": "cka"}, "--teacher_models gpt2 mixture.layer_map_files=[a.json]")],
    "save_steps save_interval": [("250", {"logging.save_steps": 250})],
    "eval_steps eval_interval": [("250", {"logging.eval_steps": 250})],
    "logging_steps": [("5", {"logging.logging_steps": 5})],
}  # fmt: skip
CASES = [(name, *case) for names, cases in SETS.items() for name in names.split() for case in cases]

# The command lines of the guides, and the settings of their cluster scripts.
DOCUMENTED = [
    "",
    "--streaming --subset_size 100000 --batch_size 4 --gradient_accumulation_steps 8 --num_workers 8",
    '--device_map "auto" --batch_size 16',
    "--max_steps 1000 --batch_size auto --gradient_accumulation auto --save_interval 200 --eval_interval 200",
    "--config explicit_hpc --model_name Qwen/Qwen2.5-7B --teacher_name Qwen/Qwen2.5-7B --dataset_name openai/gsm8k "
    "--dataset_config main --streaming --subset_size 50000 --epochs 3 --batch_size 4 --gradient_accumulation_steps 8 "
    "--lr 2e-5 --max_length 1024 --target_len 16 --kv_method rkv --kv_loss smooth_l1 --kv_weight 1.0 --codi_weight 0.5 "
    "--save_steps 1000 --logging_steps 50 --num_workers 8 --bf16 --gradient_checkpointing --device_map auto "
    "--output_dir outputs/kava_experiment --cache_dir cache",
    "--config explicit_hpc --train_file data/gsm8k_train.jsonl --epochs 3 --fp16 --gradient_checkpointing",
    "--config explicit_hpc --kv_weight 0 --output_dir outputs/E1_baseline",
    "--config explicit_hpc --kv_method full --output_dir outputs/E2_full_kv",
    "--config explicit_hpc --kv_method right_crop --output_dir outputs/E3_right_crop",
    "--config explicit_hpc --kv_method rkv --output_dir outputs/E4_rkv",
    "--config explicit_hpc --kv_method rkv --shuffle_kv --output_dir outputs/E5_shuffled",
    "--config explicit_hpc --epochs 5 --batch_size 2 --gradient_accumulation_steps 16 --lr 1e-5 --max_length 2048 "
    "--target_len 32 --save_steps 2000 --logging_steps 100 --num_workers 16 --output_dir outputs/qwen3_ultra",
    "--batch_size 4 --kv_aggregation_method mean --use_all_layers",
    "--max_length 512 --lr_student 5e-5 --lr_projector 1e-3 --weight_decay 0.01 --warmup_steps 100 --load_in_4bit",
    "--student_model Qwen/Qwen2.5-0.5B-Instruct --teacher_models gpt2 gpt2-medium gpt2-large --phase 3 --fusion_method "
    "learnable --router_type attention --layer_mapping_strategy ratio --rope_scaling_method ntk --kv_loss_type mse "
    "--lambda_k 1.0 --lambda_v 1.0 --beta_cos 0.1 --gamma_kl 0.01 --delta_ce 1.0 --entropy_target specialized "
    "--entropy_reg_strength 0.01 --max_samples 5000 --max_length 512 --output_dir outputs/multi_teacher --batch_size 4 "
    "--gradient_accumulation_steps 8 --learning_rate 2e-5 --max_steps 900 --warmup_steps 500 --save_steps 1000 "
    "--logging_steps 100 --bf16 --gradient_checkpointing --cache_dir cache --trust_remote_code",
    "--phase 1 --model_name Qwen/Qwen2.5-0.5B --teacher_prompts default cot --fixed_weights 0.7 0.3 --n_samples 64",
    "--phase 3 --teacher_models gpt2 gpt2-medium",
]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., EnvironmentAdapter]:
    monkeypatch.chdir(tmp_path)
    return builder(monkeypatch, tmp_path)


@pytest.fixture
def planned(machine) -> Callable[..., DistillRun]:
    """What a command line becomes on a machine; without one there is no GPU."""

    def run(line: str, adapter: EnvironmentAdapter | None = None, probe: Any = lambda recipe: 6) -> DistillRun:
        adapter = adapter or machine(fake_torch())
        command = verb_command("distill", SimpleNamespace(app=app))
        context = command.make_context("distill", underscores(shlex.split(line)))
        return resolve(request_of(context), adapter, probe)

    return run


def values(made: DistillRun) -> dict[str, object]:
    return flatten(made.recipe.to_dict(), "recipe", None)


# ---- flags


def test_every_spelling_is_tested() -> None:
    assert {name for names in SETS for name in names.split()} | {"cache_dir"} == set(BY_NAME)
    assert len(BY_NAME) == sum(len(flag.names.split()) for flag in FLAGS)
    assert not set(BY_NAME) & set(REFUSED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}={case[1]}")
def test_a_flag_sets_what_it_says(case: tuple, planned) -> None:
    name, value, wanted, *others = case
    words = f"--{name}" if value is None else f"--{name} {value}"
    found = values(planned(" ".join([words, *others])))
    assert {key: found[key] for key in wanted} == wanted
    if value is not None:
        other = underscores([f"--{name.replace('_', '-')}={value}"])
        assert read_words(other) == read_words([f"--{name}", value])


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_command_lines_are_understood(line: str, planned) -> None:
    assert planned(line).recipe.explicit.enabled


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    shown = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    assert (
        set(BY_NAME) | {"config", "output_dir", "seed", "use_wandb", "wandb", "quick_test", "resume", "quiet"} <= shown
    )


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_there_is_refused_with_its_reason(name: str, planned) -> None:
    with pytest.raises(ConfigError, match=f"^--{name} is not supported: .{{20}}"):
        planned(f"--{name} 3")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batchsize 4", "unknown flag '--batchsize'"),
        ("--kv_method rkv_official", "--kv_method rkv_official is not supported: it needs a package"),
        ("--kv_loss smooth_l1_alpha", "--kv_loss smooth_l1_alpha is not supported: no document"),
        ("--kv_method rvk", "rkv.method = rvk is not valid"),
        ("--streaming true", "--streaming is a switch"),
        ("--fp16=False", "--fp16 is a switch"),
        ("--batch_size", "--batch_size has no value"),
        ("--batch_size --fp16", "--batch_size has no value"),
        ("--batch_size many", "training.batch_size = many is not valid"),
        ("--lr 1e-5 --learning_rate 2e-5", "training.learning_rate is set twice, to 1e-5 by --lr and to 2e-5"),
        ("--fp16 --bf16", "system.mixed_precision is set twice"),
        ("--distill_k_only --distill_v_only", "explicit.parts is set twice"),
        ("--train_file a.jsonl --dataset_name gsm8k", "dataset.name is set twice"),
        (
            "--lr 1e-5 training.learning_rate=3e-5",
            "is set twice, to 1e-5 by --lr and to 3e-5 by training.learning_rate",
        ),
        ("--seed 1 system.seed=2", "system.seed is set twice"),
        ("--gradient_accumulation 4 system.gradient_accumulation_steps=8", "is set twice"),
        ("--gradient_accumulation probe", "only the batch is measured"),
        ("stray", "unexpected 'stray'"),
        ("--kv_weight 0 --kv_method right_crop", "rkv.method has no effect here: the key/value term is off"),
        ("--kv_weight 0 --shuffle_kv", "rkv.shuffle has no effect here"),
        ("--epochs 3 --max_steps 10", "training.epochs has no effect"),
        ("--warmup_steps 100 --epochs 3", "needs a known number of updates"),
        ("--warmup_steps 100 --max_steps 50", "the run has 50 updates"),
        ("--warmup_steps 10 --warmup_ratio 0.1", "--warmup_steps and training.warmup_ratio set the same"),
        ("--distill_layers 12-0", "--distill_layers: '12-0' is no range"),
        ("--split test", "--split: it can only be train"),
        ("--rkv_keep_recent 4", "--rkv_keep_recent: it can only be None"),
        ("--config llama1b_aug", "recipe llama1b_aug has no separate teacher"),
        ("--phase 6", "--phase 6: the phases are 1 to 5"),
        ("--phase 3 --config phase4", "recipe phase4 is a phase itself"),
        ("--phase 3 --config explicit_hpc", "recipe explicit_hpc names no teachers for phase 3"),
        ("--phase 3 --teacher_models a b a", "two teachers are the same: a with prompt default"),
        ("--phase 3 --teacher_models a b --teacher_prompts cot direct default", "3 prompts for 2 teachers (a, b)"),
        ("--phase 1 --teacher_prompts default think", "'think' is none of default, cot, direct"),
        ("--phase 3 --teacher_models a b --teacher_name c", "--teacher_name and --teacher_models"),
        ("--phase 3 --teacher_models a b mixture.teachers=[c]", "mixture.teachers and flags about teachers"),
        ("--phase 3 --teacher_store a b", "2 stores for 3 teachers"),
        ("--teacher_store a b", "2 folders for one teacher"),
        ("--phase 3 --fixed_weights 0.5 0.5", "2 weights for 3 teachers"),
        ("--phase 3 --fixed_weights 0.5 0.3 0.3", "sum to 1.1"),
        ("--phase 3 --fixed_weights much little", "--fixed_weights: 'much' is no number"),
        ("--phase 3 --router_type mlp2", "mixture.router = mlp2 is not valid"),
        ("--phase 3 --router_type gate", "mixture.router has no effect here: no router is trained"),
        ("--phase 5 --beta_cos 0.2", "explicit.beta_cos has no effect here: codes are compared"),
        ("--phase 3 --use_cka_layer_mapping", "needs layer_map_files, one for each of 3 teachers"),
        ("--phase 3 --layer_mapping_strategy skip mixture.layer_map=uniform", "mixture.layer_map is set twice"),
        ("--phase 3 --streaming", "a mixture reads each text again"),
        ("--fusion_method learnable", "mixture.fusion has no effect here: there is one teacher"),
        ("--model.nme x", "unknown key 'model.nme'"),
    ],
)
def test_a_mistake_is_one_clear_error(line: str, message: str, planned) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        planned(line)


def test_a_misspelt_flag_names_the_nearest() -> None:
    for word, nearest in {"--batchsize": "batch_size", "--kv_wieght": "kv_weight", "--quick_tst": "quick_test"}.items():
        with pytest.raises(ConfigError) as error:
            read_words([word, "4"], ["--quick_test"])
        assert error.value.hint == f"did you mean '--{nearest}'?"


def test_the_same_value_twice_is_no_conflict(planned) -> None:
    made = planned(
        "--lr 5e-5 --learning_rate 0.00005 --kv_weight 1 --alpha2 1.0 training.weight_decay=0.02 --weight_decay 0.02"
    )
    assert (made.recipe.training.learning_rate, made.recipe.training.weight_decay) == (5e-5, 0.02)


def test_a_switched_off_term_takes_the_recipes_settings_along(planned) -> None:
    """E1 of the guide: nothing but the weight is given, whatever the recipe says of the compressor."""
    recipe = planned("--config explicit_hpc --kv_weight 0").recipe
    assert (recipe.loss.alpha2_kv, recipe.loss.alpha1_codi) == (0, 0.5)


def test_flags_for_both_models_leave_out_a_teacher_that_is_not_loaded(planned) -> None:
    made = planned("--torch_dtype float32 --trust_remote_code --teacher_store kv_cache/a")
    assert made.recipe.model.trust_remote_code
    assert made.recipe.teacher == load_recipe("adaptive", ["teacher.store=kv_cache/a"]).teacher
    planned("--config explicit_hpc --torch_dtype float16 --kv_weight 0 --codi_weight 0")


# ---- several teachers


def teachers(made: DistillRun) -> list[tuple[str, str | None, str]]:
    return [(one.label, one.model, one.prompt) for one in made.recipe.mixture.teachers]


@pytest.mark.parametrize(
    ("line", "wanted", "weights"),
    [
        ("--phase 1", [("default", None, "default"), ("cot", None, "cot")], (0.7, 0.3)),
        ("--phase 1 --teacher_models m", [("default", "m", "default"), ("cot", "m", "cot")], (0.7, 0.3)),
        ("--phase 1 --teacher_name m", [("default", "m", "default"), ("cot", "m", "cot")], (0.7, 0.3)),
        ("--phase 1 --teacher_models a b", [("a", "a", "default"), ("b", "b", "default")], None),
        ("--teacher_prompts direct 'Do: {question}'",
         [("direct", None, "direct"), ("prompt2", None, "Do: {question}")], (0.7, 0.3)),
        ("--phase 1 --teacher_prompts default cot direct",
         [("default", None, "default"), ("cot", None, "cot"), ("direct", None, "direct")], None),
        ("--phase 1 --teacher_models a b --fusion_method learnable", [("a", "a", "default"), ("b", "b", "default")], None),
        ("--teacher_models x/gpt2 y/gpt2 opt",
         [("x_gpt2", "x/gpt2", "default"), ("y_gpt2", "y/gpt2", "default"), ("opt", "opt", "default")], None),
        ("--phase 3 --teacher_models a b a --teacher_prompts default default cot",
         [("a_default", "a", "default"), ("b", "b", "default"), ("a_cot", "a", "cot")], None),
        ("--phase 3 --teacher_prompts cot", [(f"gpt2{size}", f"gpt2{size}", "cot") for size in ("", "-medium", "-large")],
         None),
        ("--phase 2 --teacher_models None kava:embedded",
         [("own", None, "default"), ("kava_embedded", "kava:embedded", "default")], None),
        ("--config multi_teacher_embedded --phase 1",
         [("default", "kava:embedded", "default"), ("cot", "kava:embedded", "cot")], (0.7, 0.3)),
        ("--config multi_teacher_embedded --phase 4",
         [("plain", "kava:embedded", "default"), ("zero", "kava:embedded", "0+{question}"),
          ("sentence", "kava:embedded", "cot")], None),
    ],
)  # fmt: skip
def test_who_the_teachers_are(line: str, wanted: list, weights: object, planned) -> None:
    made = planned(line)
    assert teachers(made) == wanted
    assert made.recipe.mixture.weights == weights


@pytest.mark.parametrize("phase", ["1", "2", "3", "4", "5"])
def test_a_phase_on_another_recipe_is_what_its_own_recipe_says(phase: str, planned) -> None:
    """But for models, data and budget, which are the recipe's."""
    wanted, found = load_recipe(f"phase{phase}"), planned(f"--config multi_teacher_embedded --phase {phase}").recipe
    free = {"teachers": ()} if phase != "1" else {"teachers": found.mixture.teachers}
    assert found.mixture.model_copy(update=free) == wanted.mixture.model_copy(update=free)
    assert found.projector == wanted.projector
    base = load_recipe("multi_teacher_embedded")
    assert (found.model, found.dataset, found.training, found.loss) == (
        base.model, base.dataset, base.training, base.loss)  # fmt: skip


def test_what_is_given_wins_over_a_phase(planned) -> None:
    made = planned("--config multi_teacher_embedded --phase 4 --fusion_method fixed --fixed_weights 0.5 0.5 0")
    assert (made.recipe.mixture.fusion, made.recipe.mixture.weights) == ("fixed", (0.5, 0.5, 0))
    assert (made.recipe.mixture.per_layer, made.recipe.mixture.entropy) == (False, "none")
    assert planned("--phase 4 --entropy_target none").recipe.mixture.entropy == "none"


def test_flags_about_the_teacher_are_about_each_of_several(planned) -> None:
    made = planned("--phase 3 --torch_dtype float16 --quantization 8bit --trust_remote_code --teacher_store a b c")
    for one, store in zip(made.recipe.mixture.teachers, "abc", strict=True):
        assert (one.dtype, one.quantization, one.trust_remote_code, one.store) == ("float16", "int8", True, store)
    assert made.recipe.teacher == load_recipe("phase3").teacher
    assert planned("--phase 3 --layer_mapping_strategy skip").recipe.mixture.layer_map == "skip"
    prompt = planned("--phase 1 --teacher_prompts default '\u4f60\U0001f600 \"so\": {question}'")
    assert prompt.recipe.mixture.teachers[1].prompt == '\u4f60\U0001f600 "so": {question}'


# ---- the machine


def test_without_an_argument_the_machine_decides(planned, machine) -> None:
    made = planned("", machine(gpu(gb=8.6)))
    training, system = made.recipe.training, made.recipe.system
    assert (training.batch_size, training.gradient_accumulation_steps, training.max_steps) == (2, 16, 1000)
    assert (system.mixed_precision, system.device, system.num_workers) == ("bf16", "cuda", 8)
    assert (made.recipe.teacher.quantization, training.on_oom, training.gradient_checkpointing) == (
        "nf4", "reduce_batch", True)  # fmt: skip
    assert made.line == (
        "CUDA (NVIDIA GeForce RTX 4070 Laptop GPU, 8.6 GB): batch 2 by memory, 16 accumulated = 32 examples per update, "
        "bf16, teacher nf4"
    )
    assert made.folder == Path.cwd() / "outputs" / "adaptive_seed_42"
    on_cpu = planned("")
    assert (on_cpu.recipe.training.batch_size, on_cpu.recipe.training.gradient_accumulation_steps) == (1, 32)
    assert (on_cpu.recipe.system.mixed_precision, on_cpu.recipe.teacher.quantization) == ("no", "none")
    assert on_cpu.line.startswith("CPU: batch 1 without a GPU, 32 accumulated")


@pytest.mark.parametrize(("gb", "batch"), [(4.0, 1), (8.6, 2), (15.8, 4), (24.0, 4), (42.0, 8), (80.0, 8)])
def test_batch_and_accumulation_follow_the_table(gb: float, batch: int, planned, machine) -> None:
    training = planned("", machine(gpu(gb=gb))).recipe.training
    assert (training.batch_size, training.gradient_accumulation_steps) == (batch, 32 // batch)


def test_what_is_given_wins_over_the_machine(planned, machine) -> None:
    made = planned("--batch_size 16 --fp16 --quantization none --num_workers 1 --on_oom error", machine(gpu(gb=80.0)))
    training, system = made.recipe.training, made.recipe.system
    assert (training.batch_size, training.gradient_accumulation_steps, training.on_oom) == (16, 2, "error")
    assert (system.mixed_precision, system.num_workers, made.recipe.teacher.quantization) == ("fp16", 1, "none")
    assert "batch 16 as given, 2 accumulated" in made.line
    alone = planned("--gradient_accumulation 4", machine(gpu(gb=80.0))).recipe.training
    assert (alone.batch_size, alone.gradient_accumulation_steps) == (8, 4)
    on_cpu = planned("--device cpu", machine(gpu(gb=80.0))).recipe
    assert (on_cpu.system.device, on_cpu.training.batch_size, on_cpu.teacher.quantization) == ("cpu", 1, "none")


def test_another_recipe_keeps_its_own_numbers_until_auto_is_asked_for(planned, machine) -> None:
    own = load_recipe("explicit_hpc")
    made = planned("--config explicit_hpc", machine(gpu(gb=80.0)))
    assert made.recipe == own
    assert "batch 4 by the recipe, 8 accumulated" in made.line
    assert planned("--config explicit_hpc --batch_size auto", machine(gpu(gb=80.0))).recipe.training.batch_size == 8
    accumulated = planned(
        "--config explicit_hpc --gradient_accumulation auto batch_size=4".replace(" batch_size=4", "")
    )
    assert accumulated.recipe.training.gradient_accumulation_steps == 8


def test_a_probed_batch_is_accumulated_up_to_the_target(planned, machine) -> None:
    made = planned("--batch_size probe", machine(gpu(gb=80.0)), lambda recipe: 16)
    assert (made.recipe.training.batch_size, made.recipe.training.gradient_accumulation_steps) == (16, 2)
    assert "batch 16 as measured" in made.line
    trials = []
    line = "--config explicit_hpc --streaming --subset_size 1000 --epochs 3 --batch_size probe --gradient_accumulation auto"
    streamed = planned(line, probe=lambda recipe: trials.append(recipe) or 8)
    assert (trials[0].training.batch_size, trials[0].training.max_steps) == (1, 1)  # what is measured has a known end
    assert streamed.recipe.training.max_steps == 3 * 32
    with pytest.raises(ConfigError, match="measures one process"):
        planned("--batch_size probe", machine(gpu(gb=80.0), {"WORLD_SIZE": "2"}))


def test_several_processes_share_the_target(planned, machine) -> None:
    made = planned("--batch_size 4", machine(gpu(gb=80.0, gpus=4), {"WORLD_SIZE": "4"}))
    assert made.recipe.training.gradient_accumulation_steps == 2
    assert "= 32 examples per update" in made.line


def test_only_workers_can_prefetch(planned, machine) -> None:
    text = "training:\n  dataloader:\n    prefetch_factor: 4\n"
    key = "dataloader_prefetch_factor"
    assert planned("", machine(fake_torch(), text=text)).recipe.training.hf[key] == 4
    for line in ("--num_workers 0", "--quick_test"):
        assert key not in planned(line, machine(fake_torch(), text=text)).recipe.training.hf


def test_the_cpu_may_be_forbidden_and_can_be_insisted_on(planned, machine) -> None:
    text = "hardware:\n  gpu_detection:\n    fallback_to_cpu: false\n"
    with pytest.raises(ConfigError, match="no GPU was found"):
        planned("", machine(fake_torch(), text=text))
    assert planned("--device cpu", machine(fake_torch(), text=text)).recipe.system.device == "cpu"


def test_without_bitsandbytes_the_teacher_is_not_quantised(planned, machine) -> None:
    assert planned("", machine(gpu(gb=8.6), bitsandbytes=None)).recipe.teacher.quantization == "none"


def test_paths_come_from_the_variables(planned, machine, tmp_path: Path) -> None:
    for name in ("m/qwen-1.5b-teacher", "m/qwen-0.5b-student", "d/gsm8k/train"):
        (tmp_path / name).mkdir(parents=True)
    environ = {"KAVA_MODEL_PATH": "m", "KAVA_DATA_PATH": "d", "KAVA_OUTPUT_PATH": str(tmp_path / "o")}
    made = planned("--seed 7 --quick_test", machine(fake_torch(), environ))
    assert made.folder == tmp_path / "o" / "adaptive_seed_7_quick"
    assert made.recipe.model.name == str(tmp_path / "m" / "qwen-0.5b-student")
    assert made.recipe.teacher.name == str(tmp_path / "m" / "qwen-1.5b-teacher")
    assert (made.recipe.dataset.name, made.recipe.dataset.config) == (str(tmp_path / "d" / "gsm8k" / "train"), None)
    given = planned("--model_name gpt2 --dataset_name svamp", machine(fake_torch(), environ)).recipe
    assert (given.model.name, given.dataset.name) == ("gpt2", "svamp")


def test_a_quick_test_is_four_small_updates(planned) -> None:
    recipe = planned("--quick_test --use_wandb").recipe
    assert (recipe.training.max_steps, recipe.training.batch_size, recipe.dataset.subset_size) == (4, 4, 32)
    assert "wandb" in recipe.logging.report_to
    assert planned("--quick_test --max_steps 2 --batch_size 8").recipe.training.batch_size == 8


def test_a_run_is_continued_with_what_it_began_with(planned, machine, tmp_path: Path) -> None:
    began = planned("--lr 1e-5 --output_dir run", machine(gpu(gb=42.0)))
    (tmp_path / "run").mkdir()
    save_recipe(began.recipe, tmp_path / "run" / "recipe.yaml")
    again = planned("--lr 1e-5 --output_dir run --resume auto", machine(gpu(gb=8.6)))
    assert again.recipe == began.recipe
    assert "batch 8 as the run began" in again.line
    moved = planned("--lr 1e-5 --output_dir run --resume auto", machine(fake_torch()))
    assert moved.recipe.system.device == "cpu"
    assert moved.recipe.training == began.recipe.training


# ---- arithmetic


@pytest.mark.parametrize(
    ("steps", "updates"), [(0, 10), (1, 3), (3, 7), (100, 1000), (29, 1000), (57, 100), (999, 1000)]
)
def test_warm_up_is_exactly_so_many_updates(steps: int, updates: int, planned) -> None:
    import math

    ratio = planned(f"--warmup_steps {steps} --max_steps {updates}").recipe.training.warmup_ratio
    assert math.ceil(updates * ratio) == steps  # as transformers has it


def test_a_streams_epochs_become_updates(planned) -> None:
    made = planned("--config explicit_hpc --streaming --subset_size 1000 --epochs 3")
    assert made.recipe.training.max_steps == 3 * 32  # 1000 / (4 x 8), rounded up
    assert made.line.endswith("; 3 epochs of 1000 streamed examples are 96 updates")
    assert planned("--config explicit_hpc --streaming --max_steps 9").recipe.training.max_steps == 9


def test_the_hubs_cache_is_moved_before_anything_is_loaded(machine, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    adapter, environ = machine(fake_torch()), {}
    use_cache({}, adapter, environ)
    assert environ == {}
    use_cache({"cache_dir": "cache"}, adapter, environ)
    assert environ == {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    named = machine(fake_torch(), {"KAVA_CACHE_PATH": "fast"})
    environ = {"KAVA_CACHE_PATH": "fast"}
    use_cache({}, named, environ)
    assert environ["HF_HUB_CACHE"] == str(tmp_path / "fast")
    environ = {"KAVA_CACHE_PATH": "fast", "HF_HOME": "mine"}
    use_cache({}, named, environ)
    assert "HF_HUB_CACHE" not in environ
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", SimpleNamespace(HF_HUB_CACHE="elsewhere"))
    with pytest.raises(ConfigError, match="in use at elsewhere"):
        use_cache({"cache_dir": "cache"}, adapter, {})


def test_a_request_needs_nothing() -> None:
    assert DistillRequest().config == "adaptive"
