"""What system.sharding means for a number of processes, and which settings it refuses before anything is loaded."""

from __future__ import annotations

import pytest

from kava.backbone.load import build_model
from kava.config import load_recipe
from kava.errors import ConfigError
from kava.training import sharding_rules
from kava.training.processes import shard_world
from kava.training.sharding_rules import parameters, sharding_of


def test_weights_are_counted_without_loading_them() -> None:
    recipe = load_recipe("debug", [])
    lm = build_model(recipe)[0].causal_lm
    assert abs(parameters(recipe.model) - sum(weight.numel() for weight in lm.parameters())) <= 3 * 64  # special tokens


def test_auto_shards_from_seven_billion_on(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("explicit_embedded", ["teacher.name=other"])
    sizes = {recipe.model.name: 1e9, "other": 1e9}
    monkeypatch.setattr(sharding_rules, "parameters", lambda model: sizes[model.name])
    assert (sharding_of(recipe, 1), sharding_of(recipe, 2)) == ("auto", "none")
    sizes["other"] = 6.7e9
    assert (sharding_of(recipe, 1), sharding_of(recipe, 2)) == ("auto", "fsdp2")
    stored = load_recipe("explicit_embedded", ["teacher.store=somewhere"])
    assert sharding_of(stored, 2) == "none"


def test_of_several_nodes_each_has_a_copy() -> None:
    assert shard_world(8, {}) == 8
    assert shard_world(8, {"LOCAL_WORLD_SIZE": "8"}) == 8
    assert shard_world(32, {"LOCAL_WORLD_SIZE": "8"}) == 8
    assert shard_world(4, {"LOCAL_WORLD_SIZE": "1"}) == 4  # one GPU a node


NF4 = "teacher.quantization=nf4"
REFUSED = (
    ("debug", 3, (), "system.sharding=fsdp2 divides kava:embedded among 3 processes, but it has 2 layers"),
    ("debug", 2, ("system.mixed_precision=fp16",), "mixed_precision=fp16 have not been tried"),
    ("debug", 2, ("training.optimizer=adafactor",), "training.optimizer=adafactor keeps moments"),
    ("debug", 2, ("training.hf={torch_compile: true}",), "training.hf.torch_compile and system.sharding=fsdp2"),
    ("explicit_embedded", 2, ("system.cpu_offload=true", NF4), "the teacher kava:embedded is quantised"),
)


@pytest.mark.parametrize(("name", "count", "settings", "problem"), REFUSED)
def test_what_shards_cannot_do_is_refused(name: str, count: int, settings: tuple[str, ...], problem: str) -> None:
    recipe = load_recipe(name, ["system.sharding=fsdp2", *settings])
    with pytest.raises(ConfigError, match=problem) as error:
        sharding_of(recipe, count)
    assert "\n" not in error.value.message
    assert error.value.hint
    assert sharding_of(recipe, 1) == "fsdp2"  # alone nothing is divided


def test_a_quantised_teacher_of_a_mixture_is_refused_by_name() -> None:
    teachers = (
        "mixture.teachers=[{name: one, model: kava:embedded}, {name: two, model: kava:embedded, quantization: nf4}]"
    )
    recipe = load_recipe("multi_teacher_embedded", [teachers, "system.sharding=fsdp2", "system.cpu_offload=true"])
    with pytest.raises(ConfigError, match="the teacher two is quantised"):
        sharding_of(recipe, 2)


def test_offload_has_no_effect_without_shards() -> None:
    with pytest.raises(ConfigError, match=r"system\.cpu_offload"):
        load_recipe("debug", ["system.sharding=none", "system.cpu_offload=true"])
