"""The explicit line's terms, counts and gradients against plain loops, over a list of cases that meets each setting twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import oracle_tokens as slow
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import explicit
import zoo
from compare import plain_attention
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.evaluation.held_out import held_out
from kava.objective.objective import Objective
from kava.objective.records import Step

LLAMA, GPT, QWEN2, QWEN3 = "llama-gqa", "gpt2", "qwen2", "qwen3"
EPOCH, UPDATE = 2, 5


class Case(NamedTuple):
    family: str
    teacher: str
    settings: str


def head(more: str = "") -> str:
    return f"explicit.choose=head projector.direction=none {more}"


def sample(direction: str, more: str = "") -> str:
    return f"explicit.choose=sample projector.direction={direction} {more}"


def whole(aggregation: str, direction: str, more: str = "") -> str:
    return f"explicit.form=aggregated explicit.aggregation={aggregation} projector.direction={direction} {more}"


NONE, DOWN, UP = "none", "teacher_to_student", "student_to_teacher"
CASES = {
    # per layer and head, layers mixed, every way of choosing
    "head": Case(LLAMA, "same", head()),
    "head-deep": Case(LLAMA, "deep", head("loss.kv_loss_type=smooth_l1 loss.layerwise_std=false")),
    "head-deep-qwen2": Case(QWEN2, "deep", head("loss.kv_loss_type=l1 explicit.parts=k")),
    "head-deep-qwen3": Case(QWEN3, "deep", head("loss.kv_loss_type=smooth_l1 explicit.parts=v rkv.lambda=0")),
    "head-deep-gpt2": Case(GPT, "gpt-deep", head("loss.layerwise_std=false rkv.lambda=1")),
    "head-shallow": Case(LLAMA, "shallow", head("loss.kv_loss_type=l1 loss.layerwise_std=false rkv.lambda=0")),
    "head-uniform-map": Case(LLAMA, "deep", head("explicit.layer_map=uniform rkv.method=crop rkv.crop_keep=first")),
    "head-skip-map": Case(GPT, "gpt-deep", head("explicit.layer_map=skip rkv.method=crop explicit.layers=1-2")),
    "head-original": Case(LLAMA, "same", head("rkv.method=rkv_original rkv.lambda=0.07 explicit.layers=0-0")),
    "head-uniform": Case(LLAMA, "same", head("rkv.method=uniform explicit.parts=k rkv.shuffle=time")),
    "head-random": Case(QWEN3, "same", head("rkv.method=random explicit.parts=v")),
    "head-steps": Case(LLAMA, "deep", head("rkv.method=steps explicit.target_len=2")),
    "head-full": Case(QWEN2, "same", head("rkv.method=full loss.std_scope=batch")),
    "head-examples": Case(LLAMA, "deep", head("rkv.shuffle=examples explicit.attention_weighted=true")),
    "head-time": Case(LLAMA, "same", head("rkv.shuffle=time loss.kv_loss_type=cosine")),
    "head-weighted": Case(LLAMA, "deep", head("explicit.attention_weighted=true loss.kv_loss_type=hybrid")),
    "head-structural": Case(LLAMA, "deep", head("loss.kv_loss_type=structural rkv.method=random")),
    "head-structural-qwen3": Case(QWEN3, "same", head("loss.kv_loss_type=structural rkv.lambda=1")),
    "head-mercator": Case(GPT, "gpt-deep", head("loss.kv_loss_type=mercator rkv.method=full")),
    # per layer, one choice per sample
    "sample": Case(QWEN3, "deep", sample(NONE, "explicit.attention_weighted=true")),
    "sample-structural": Case(GPT, "gpt-deep", sample(NONE, "loss.kv_loss_type=structural rkv.lambda=0")),
    "up": Case(LLAMA, "large", sample(UP)),
    "up-cosine": Case(LLAMA, "large", sample(UP, "loss.kv_loss_type=cosine rkv.shuffle=examples explicit.layers=1-2")),
    "up-gpt2": Case(GPT, "gpt-large", sample(UP, "loss.kv_loss_type=smooth_l1 rkv.method=crop")),
    "up-fixed": Case(QWEN2, "large", sample(UP, "projector.trainable=false rkv.method=steps loss.std_scope=batch")),
    "down": Case(LLAMA, "large", sample(DOWN)),
    "down-mercator": Case(QWEN3, "large", sample(DOWN, "loss.kv_loss_type=mercator explicit.parts=k rkv.method=full")),
    "down-hybrid": Case(GPT, "gpt-large", sample(DOWN, "loss.kv_loss_type=hybrid explicit.parts=v rkv.shuffle=time")),
    "down-weighted": Case(LLAMA, "large", sample(DOWN, "explicit.attention_weighted=true rkv.shuffle=examples")),
    "down-fixed": Case(LLAMA, "large", sample(DOWN, "projector.trainable=false projector.mlp_ratio=0.5")),
    "down-band": Case(LLAMA, "large", sample(DOWN, "projector.guard=band loss.kv_loss_type=cosine")),
    "down-unguarded": Case(LLAMA, "shallow", sample(DOWN, "projector.guard=none loss.kv_loss_type=l1 rkv.lambda=1")),
    # all layers as one vector
    "concat": Case(LLAMA, "same", whole("concat", NONE, "rkv.method=uniform")),
    "concat-up": Case(LLAMA, "large", whole("concat", UP, "loss.kv_loss_type=smooth_l1")),
    "concat-down": Case(GPT, "gpt-large", whole("concat", DOWN, "loss.kv_loss_type=mercator")),
    "mean": Case(QWEN3, "deep", whole("mean", NONE, "loss.kv_loss_type=cosine rkv.method=random")),
    "mean-up": Case(QWEN2, "large", whole("mean", UP, "rkv.method=random rkv.shuffle=time explicit.parts=k")),
    "mean-down": Case(LLAMA, "large", whole("mean", DOWN, "explicit.attention_weighted=true rkv.lambda=0")),
    "weighted": Case(LLAMA, "deep", whole("weighted", NONE, "explicit.attention_weighted=true")),
    "weighted-up": Case(GPT, "gpt-large", whole("weighted", UP, "rkv.shuffle=examples loss.kv_loss_type=hybrid")),
    "weighted-down": Case(LLAMA, "large", whole("weighted", DOWN, "loss.layerwise_std=false rkv.method=full")),
    "last-layer": Case(LLAMA, "deep", whole("mean", NONE, "explicit.use_all_layers=false rkv.method=steps")),
    "last-layer-down": Case(QWEN3, "large", whole("concat", DOWN, "explicit.use_all_layers=false explicit.parts=v")),
    # the other terms
    "codi": Case(LLAMA, "deep", head("loss.alpha1_codi=2")),
    "codi-l1": Case(GPT, "gpt-deep", head("loss.alpha1_codi=2 loss.codi_loss_type=l1 loss.layerwise_std=false")),
    "codi-batch": Case(QWEN2, "same", head("loss.alpha1_codi=1 loss.codi_loss_type=mse loss.std_scope=batch")),
    "codi-up": Case(LLAMA, "large", sample(UP, "loss.alpha1_codi=3 explicit.cka_weight=0.5 explicit.cka_layers=0,2")),
    "codi-down": Case(GPT, "gpt-large", whole("mean", DOWN, "loss.alpha1_codi=3 loss.codi_loss_type=mse")),
    "cka": Case(QWEN3, "deep", head("explicit.cka_weight=0.5 explicit.cka_layers=last loss.student_ce=0")),
}  # fmt: skip
LONG = {
    "head", "head-deep-qwen2", "head-shallow", "head-original", "head-time", "head-structural-qwen3", "head-mercator",
    "sample-structural", "up", "up-gpt2", "down-fixed", "down-unguarded", "concat", "concat-down", "mean-up",
    "weighted-up", "last-layer-down", "codi", "codi-batch", "codi-down",
}  # fmt: skip
ALONE = {  # no key/value term
    "codi": Case(LLAMA, "deep", "loss.alpha2_kv=0 loss.alpha1_codi=2"),
    "cka": Case(GPT, "gpt-large", "loss.alpha2_kv=0 explicit.cka_weight=1"),
}


def test_the_list_meets_every_setting_twice() -> None:
    text = [f"{case.settings} " for case in CASES.values()]
    for word in (
        *("loss.kv_loss_type=" + kind for kind in ("smooth_l1", "l1", "cosine", "mercator", "hybrid", "structural")),
        *("rkv.method=" + kind for kind in ("crop", "random", "uniform", "steps", "full")),
        *("rkv.shuffle=" + kind for kind in ("time", "examples")),
        *("rkv.lambda=0 ", "rkv.lambda=1 ", "explicit.parts=k", "explicit.parts=v", "loss.layerwise_std=false"),
        *(f"aggregation={kind} " for kind in ("concat", "mean", "weighted")),
        *("projector.direction=" + direction for direction in (DOWN, UP)),
        *(
            "loss.std_scope=batch",
            "explicit.attention_weighted=true",
            "explicit.cka_weight",
            "projector.trainable=false",
        ),
    ):
        assert sum(word in one for one in text) >= 2, word


def marked(names: Iterable[str], long: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.long] * (name in long)) for name in names]


@pytest.mark.parametrize("name", marked(CASES, LONG))
def test_terms_counts_and_gradients(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", ALONE)
def test_without_a_key_value_term(name: str) -> None:
    check(ALONE[name])


@pytest.mark.parametrize("name", marked(["head-time", "sample", "down", "weighted-down"], {"sample", "down"}))
def test_held_out_numbers(name: str) -> None:
    case = CASES[name]
    taught_by = explicit.teacher(case.family, case.teacher)
    kind = explicit.objective(explicit.student(case.family), taught_by, *case.settings.split(), *after(case))
    batch = zoo.batch(explicit.UNEVEN, seed=4)
    asked = samples(batch)
    with torch.no_grad(), plain_attention(kind.model) as lm, plain_attention(taught_by.model) as teacher:
        settings = explicit.recipe_of(*case.settings.split(), *after(case)).to_dict()
        wanted = slow.held_out(settings, aux_state(kind), asked, lm, teacher)
    encoded = [Encoded(str(s.id), s.question, s.cot, s.result, s.cue, s.answer, s.eos) for s in asked]
    found = held_out(kind, encoded, Collator(7), 3)
    assert found is not None
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


CODI = "aux_terms.codi.project"


def check(case: Case) -> None:
    """The batch holds N_C above, below, at and without what is kept; its padding is on the left."""
    taught_by = explicit.teacher(case.family, case.teacher)
    kind = explicit.objective(explicit.student(case.family), taught_by, *case.settings.split(), *after(case))
    batch = zoo.batch(explicit.UNEVEN, "left", seed=4)
    with plain_attention(kind.model) as lm, plain_attention(taught_by.model) as teacher:
        settings = explicit.recipe_of(*case.settings.split(), *after(case)).to_dict()
        loss, terms = slow.loss(settings, aux_state(kind), samples(batch), lm, teacher, EPOCH, late=True)
        wanted = {name: (total.detach(), count) for name, (total, count, _) in terms.items()}
        gradients = explicit.gradients(loss, kind)
    assert all(float(total) > 1e-3 and count > 0 for total, count in wanted.values()), wanted
    explicit.assert_same(explicit.measure(kind, [batch], Step(UPDATE, EPOCH)), (wanted, gradients))


def after(case: Case) -> list[str]:
    return [f"explicit.attention_weighted_after={UPDATE}"] if "attention_weighted=true" in case.settings else []


def samples(batch: dict[str, Tensor]) -> list[slow.Sample]:
    found = []
    for row in range(len(batch["question"])):
        question, cot, tail = (batch[n][row][batch[f"{n}_mask"][row]].tolist() for n in ("question", "cot", "tail"))
        answer = batch["tail"][row][batch["tail_answer"][row]].tolist()
        cue = tail[: len(tail) - len(answer) - 1]
        result = batch["cot_result"][row][batch["cot_mask"][row]].tolist()
        found.append(slow.Sample(question, cot, result, cue, answer, tail[-1], int(batch["example_id"][row])))
    return found


def aux_state(kind: Objective) -> slow.Own:
    """The objective's own weights by the oracle's names."""
    weights: dict[str, Any] = kind.aux_state()
    found = slow.Own(
        student_weights=weights.get("compare.gather_student.weights"),
        teacher_weights=weights.get("compare.gather_teacher.weights"),
    )
    if f"{CODI}.weight" in weights:
        found.map = lambda state: weights[f"{CODI}.weight"] @ state + weights[f"{CODI}.bias"]
    if "compare.reference" in weights:
        found.reference = {
            (part, place): weights["compare.reference"][number, place]
            for number, part in enumerate("kv")
            for place in range(weights["compare.reference"].shape[1])
        }
    down = [name for name in weights if ".adapters." in name]
    if down:
        found.projector = lambda part, place, vector: mlp(branch(weights, down, part, place), vector)
    if "compare.projector.K.0.weight" in weights:
        found.projector = lambda part, place, vector: linear(
            weights, f"compare.projector.{part.upper()}.{place}", vector
        )
    return found


def branch(weights: dict[str, Tensor], names: list[str], part: str, place: int) -> dict[str, Tensor]:
    start = f"compare.projector.{place}." if names[0].startswith("compare.projector.0.") else "compare.projector."
    lead = f"{start}adapters.teacher.{part.upper()}."
    return {name.removeprefix(lead): weights[name] for name in names if name.startswith(lead)}


def mlp(weights: dict[str, Tensor], vector: Tensor) -> Tensor:
    """LayerNorm, Linear, SiLU, Linear."""
    middle = vector - vector.mean()
    vector = middle / torch.sqrt((middle**2).mean() + 1e-5) * weights["0.weight"] + weights["0.bias"]
    vector = weights["1.weight"] @ vector + weights["1.bias"]
    return weights["4.weight"] @ (vector * F.sigmoid(vector)) + weights["4.bias"]


def linear(weights: dict[str, Tensor], name: str, vector: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ vector + weights[f"{name}.bias"]
