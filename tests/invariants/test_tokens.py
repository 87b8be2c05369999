"""The explicit line's loss: nothing but the samples' content changes it, and it trains what it should and nothing else."""

from __future__ import annotations

import pytest
import torch

import zoo
from compare import take
from explicit import (
    EIGHT,
    LLAMA,
    MORE,
    SHAPES,
    UNEVEN,
    assert_same,
    fresh_student,
    gradients,
    longer,
    make,
    measure,
    objective,
    recipe_of,
    student,
    teacher,
)
from kava.backbone.recompute import recompute_layers
from kava.compress.full import Full
from kava.data.cut import cut
from kava.errors import ConfigError
from kava.losses import add
from kava.objective.make import make_objective
from kava.objective.pairing import Pairing
from kava.objective.records import Step
from kava.teachers.base import TeacherWants

every_shape = pytest.mark.parametrize("shape", SHAPES)


# -- padding, batches, counts ----------------------------------------------------------------------------------------


@every_shape
def test_neither_padding_nor_the_batch_changes_anything(shape: str) -> None:
    kind, batch = make(shape), zoo.batch(UNEVEN)
    whole = measure(kind, [batch])
    assert_same(measure(kind, [zoo.batch(UNEVEN, "left")]), whole)
    for parts in ([[0], [1], [2], [3]], [[3, 1], [2, 0]]):
        assert_same(measure(kind, [take(batch, rows) for rows in parts]), whole)
    assert_same(measure(kind, cut(zoo.batch(UNEVEN, "left"), 30)), whole)


@pytest.mark.parametrize(
    ("shape", "shuffle"),
    [("head", "time"), pytest.param("whole-down", "none", marks=pytest.mark.long)],
    ids=["head", "whole"],
)
@pytest.mark.parametrize(
    "method",
    [
        "random",
        "rkv_original",
        "steps",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("crop", "full", "uniform")),
    ],
)
def test_nor_does_it_for_any_choice_of_positions(method: str, shape: str, shuffle: str) -> None:
    kind, batch = make(shape, f"rkv.method={method}", f"rkv.shuffle={shuffle}"), zoo.batch(UNEVEN)
    whole = measure(kind, [zoo.batch(UNEVEN, "left")])
    assert_same(measure(kind, [take(batch, rows) for rows in ([2], [3, 0], [1])]), whole)


@pytest.mark.parametrize("shape", longer(SHAPES.keys() - {"down"}))
def test_eight_at_once_are_two_fours_and_eight_ones(shape: str) -> None:
    kind, batch = make(shape), zoo.batch(EIGHT)
    whole = measure(kind, [batch])
    for size in (4, 1):
        parts = [take(batch, range(start, start + size)) for start in range(0, 8, size)]
        assert_same(measure(kind, parts), whole)


@every_shape
def test_counts_are_known_before_the_forward(shape: str) -> None:
    for lengths in (UNEVEN, ((4, 0, 1), (2, 0, 2)), ((3, 1, 1),)):
        kind, batch = make(shape), zoo.batch(lengths)
        known = kind.counts(batch)
        assert {term.name: term.count for term in kind(batch).terms} == known
        wanted = {"ce_student", "kv"} | ({"codi", "cka"} if set(MORE) <= set(SHAPES[shape][1]) else set())
        wanted |= {"guard"} if "down" in shape else {"attention"} if shape == "structural" else set()
        assert known.keys() == wanted


@every_shape
def test_a_batch_without_any_chain_of_thought(shape: str) -> None:
    kind, batch = make(shape), zoo.batch(((4, 0, 1), (2, 0, 2)))
    found, grads = measure(kind, [batch])
    for name in {"kv", "guard", "cka", "attention"} & found.keys():
        assert (float(found[name][0]), found[name][1]) == (0.0, 0.0), name
    assert all(bool(grad.isfinite().all()) for grad in grads.values())
    assert any(bool(grad.any()) for grad in grads.values())
    later = measure(kind, [batch, zoo.batch(UNEVEN)])
    wanted = measure(kind, [zoo.batch(UNEVEN)])
    for name in {"kv", "guard", "cka", "attention"} & found.keys():
        assert later[0][name] == wanted[0][name]


@pytest.mark.parametrize("shape", ["head", "down", "whole-down"])
def test_empty_slots_hold_nothing(shape: str) -> None:
    """Fewer tokens than are kept: asking for more of them changes nothing."""
    batch = zoo.batch(((5, 3, 2), (3, 2, 1), (4, 1, 1)))
    found = [measure(make(shape, f"explicit.target_len={keep}"), [batch]) for keep in (3, 9)]
    assert_same(found[1], found[0])
    assert_same(measure(make(shape, "rkv.method=full"), [batch]), found[0])


def test_entries_are_weighted_from_the_update_that_was_named() -> None:
    more = ("explicit.attention_weighted=true", "explicit.attention_weighted_after=3", "rkv.lambda=0")
    kind, plain, batch = make("down", *more), make("down", "rkv.lambda=0"), zoo.batch(UNEVEN)
    assert not kind.teacher_wants(Step(update=2)).importance
    assert_same(measure(kind, [batch], Step(update=2)), measure(plain, [batch]))
    assert kind.teacher_wants(Step(update=3)).importance
    found, wanted = (measure(one, [batch], Step(update=3))[0]["kv"] for one in (kind, plain))
    assert found[1] == wanted[1]
    assert abs(float(found[0] - wanted[0])) > 1e-4 * float(wanted[0])


def test_half_precision_is_reduced_in_float32() -> None:
    """The student and the teacher in their own type, what is beside them in float32."""
    dtype = torch.bfloat16
    for kind_of_teacher, settings in SHAPES.values():
        taught_by = teacher(LLAMA, kind_of_teacher, dtype)
        kind = make_objective(recipe_of(*settings), student(LLAMA, dtype), taught_by)
        assert all(value.dtype == torch.float32 for value in kind.aux_state().values())
        result = kind(zoo.batch(UNEVEN))
        assert all(term.total.dtype == torch.float32 and bool(term.total.isfinite()) for term in result.terms)
        assert all(bool(grad.isfinite().all()) for grad in gradients(add(result.terms), kind).values())


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize("shape", ["head", "down", "whole-up"])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "qwen3"])
def test_keys_alone_and_values_alone_reach_every_layer(family: str, shape: str, part: str) -> None:
    settings = [s for s in SHAPES[shape][1] if s not in MORE]
    taught_by = teacher(family, {"head": "same"}.get(shape, "gpt-large" if family == "gpt2" else "large"))
    kind = objective(student(family), taught_by, *settings, f"explicit.parts={part}", "loss.student_ce=0")
    _, grads = measure(kind, [zoo.batch(UNEVEN)])
    for layer in range(kind.model.kv_shape.num_layers):
        if family == "gpt2":
            grad = grads[f"model.backbone.transformer.h.{layer}.attn.c_attn.weight"]
            reached = dict(zip("qkv", (bool(third.any()) for third in grad.chunk(3, dim=1)), strict=True))
        else:
            lead = f"model.backbone.model.layers.{layer}.self_attn"
            reached = {name: bool(grads[f"{lead}.{name}_proj.weight"].any()) for name in "kv"}
        assert reached[part], f"layer {layer}"
        if layer == kind.model.kv_shape.num_layers - 1:
            assert not reached["v" if part == "k" else "k"]


@every_shape
def test_all_that_is_trained_beside_the_student_gets_a_gradient(shape: str) -> None:
    for more in ((), ("explicit.parts=k",), ("explicit.parts=v",)):
        kind = make(shape, *more)
        _, grads = measure(kind, [zoo.batch(UNEVEN)])
        idle = [name for name, grad in grads.items() if not name.startswith("model.") and not grad.any()]
        assert not idle, more


def test_checkpointing_changes_nothing() -> None:
    for shape in ("structural", "whole-down"):
        model = fresh_student(LLAMA)
        wanted = measure(make(shape, model=model), [zoo.batch(UNEVEN)])
        recompute_layers(model.causal_lm, model.family)
        kind = make(shape, model=model)
        model.train()
        assert_same(measure(kind, [zoo.batch(UNEVEN)]), wanted)


def test_what_makes_entries_cannot_choose_among_positions() -> None:
    with pytest.raises(ConfigError, match="Full makes entries of its own"):
        Pairing(Full(), 4)


def test_a_fixed_projector_is_not_trained() -> None:
    for shape in ("down", "whole-down"):
        settings = [s for s in SHAPES[shape][1] if not s.startswith("loss.alpha1_codi")]
        kind = objective(student(LLAMA), teacher(LLAMA, "large"), *settings, "projector.trainable=false")
        mine = {name for name in kind.trained() if not name.startswith("model.")}
        assert mine == ({"compare.gather_student.weights"} if shape == "whole-down" else set())
        assert any("adapters" in name for name in kind.aux_state())
        assert "guard" not in kind.counts(zoo.batch(UNEVEN))


@every_shape
def test_the_teacher_is_no_part_of_it_and_gets_no_gradient(shape: str) -> None:
    """Not even where teacher and student are the same tensors."""
    model = fresh_student(LLAMA)
    shared = teacher(LLAMA, "same")
    kind = objective(model, shared, *(s for s in SHAPES[shape][1]))
    theirs = {id(weight) for weight in shared.model.parameters()}
    assert not theirs & {id(weight) for weight in kind.parameters()}
    assert not any(id(value) in theirs for value in kind.state_dict(keep_vars=True).values())
    assert not any(weight.requires_grad for weight in shared.model.parameters())
    assert not shared.model.training
    seen = shared(zoo.batch(UNEVEN), TeacherWants(importance=True, cue=True))
    for tensor in [*seen.keys, *seen.values, *(seen.importance or []), seen.cue]:
        assert tensor is not None
        assert not tensor.requires_grad
    kind.train()
    assert not shared.model.training
    add(kind(zoo.batch(UNEVEN)).terms).backward()
    assert all(weight.grad is None for weight in shared.model.parameters())
