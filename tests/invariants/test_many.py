"""Mixtures: with one teacher, twice the same, in another order, in other batches; what is trained, seen and kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import compare
import explicit
import many
import mixtures
import zoo
from explicit import EIGHT, LLAMA, UNEVEN, assert_same, fresh_student, gradients, measure, student
from kava.backbone.load import build_model
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.data.cut import cut
from kava.data.encode import Encoder
from kava.data.teacher_texts import TeachersCollator, texts_of, view
from kava.evaluation.held_out import held_out
from kava.losses import add
from kava.objective.calibration import calibrate
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.objective.targets import Target
from kava.teachers.base import TeacherWants
from kava.teachers.teacher_set import TeacherSet, load_teacher_set
from mixtures import FULL, HEAD, ROUTED, SAMPLE, THREE, Z, batch, objective, one_text, take

TWO = ("large", "gpt2")
FUSIONS = {
    "fixed": ("mixture.weights=[0.5,0.25,0.25]", "explicit.gamma_kl=0.2", "explicit.beta_cos=0.1"),
    "similarity": ("mixture.fusion=similarity", "mixture.per_layer=true"),
    "mlp": (*ROUTED, "mixture.per_layer=true", *HEAD),
    "tokens": (*ROUTED, "mixture.per_token=true", "mixture.router=attention", "mixture.query=embedding", *FULL),
    "z": (*Z, *ROUTED),
    "barlow": (*Z, "mixture.z_loss=barlow"),
}
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def slower(names: Any, slow: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.long] * (name in slow)) for name in names]


def make(fusion: str, *more: str, **named: Any) -> Objective:
    return objective(THREE, *FUSIONS[fusion], *more, **named)


# -- one teacher, the same twice, another order ----------------------------------------------------------------------


ALONE = {
    "head": HEAD,
    "head-full": (*HEAD, *FULL, "explicit.attention_weighted=true", "explicit.attention_weighted_after=0"),
    "sample": (*SAMPLE, "explicit.gamma_kl=0.3", "explicit.beta_cos=0.2"),
    "sample-full": (*SAMPLE, *FULL, "explicit.cka_weight=0.5", "explicit.lambda_k=2"),
    "structural": (*HEAD, "loss.kv_loss_type=structural", "rkv.method=uniform"),
    "whole": ("explicit.form=aggregated", "explicit.aggregation=weighted", "loss.kv_loss_type=hybrid"),
}


@pytest.mark.parametrize("name", slower(ALONE, {"structural", "sample-full", "head", "whole"}))
def test_a_mixture_of_one_is_no_mixture(name: str) -> None:
    """Same tokens, equal shapes, adapters that do nothing: every term and gradient of the plain objective."""
    settings = ALONE[name]
    plain = explicit.objective(student(LLAMA), explicit.teacher(LLAMA), "projector.direction=none", *settings)
    kind = objective(("same",), *settings, "projector.trainable=false", noise=0)
    with torch.no_grad():
        for key, weight in plain.aux_state().items():  # weights of layers
            kind.aux_state()[key].copy_(weight)
    for side in ("right", "left"):
        found = measure(kind, [one_text(("same",), side=side)])
        assert_same(found, measure(plain, [zoo.batch(UNEVEN, side, 4)]))
    trained = objective(("same",), *settings, "projector.guard=none", noise=0)
    with torch.no_grad():
        for key, weight in plain.aux_state().items():
            trained.aux_state()[key].copy_(weight)
    (terms, grads), (wanted, theirs) = measure(trained, [one_text(("same",))]), found
    for key, (total, count) in wanted.items():
        assert float(terms[key][0]) == pytest.approx(float(total), rel=1e-9)
        assert terms[key][1] == count
    for key, grad in theirs.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", slower(["fixed", "mlp", "similarity", "z"], {"similarity", "fixed"}))
def test_the_same_teacher_twice_is_that_teacher(name: str) -> None:
    more = (*(s for s in FUSIONS[name] if not s.startswith(("mixture.weights", "mixture.entropy"))), *(
        ("mixture.weights=[0.75,0.25]",) if name == "fixed" else ()))  # fmt: skip
    shared = () if name == "z" else ("mixture.share_adapters=true",)
    twice = objective(("large", "large"), *more, *shared)
    once = objective(("large",), *(s for s in more if not s.startswith("mixture.weights")))
    with torch.no_grad():
        for key, weight in twice.aux_state().items():
            if key in once.aux_state() and once.aux_state()[key].shape == weight.shape:
                once.aux_state()[key].copy_(weight)
            if "coder.others.1." in key:
                weight.copy_(twice.aux_state()[key.replace("others.1.", "others.0.")])
    both = batch(("large", "large"))
    both |= {key.replace("t0.", "t1."): value for key, value in both.items() if key.startswith("t0.")}
    (found, grads), (wanted, theirs) = measure(twice, [both]), measure(once, [both])
    for key, (total, count) in wanted.items():
        times = 2 if key == "guard" else 1
        assert float(found[key][0]) == pytest.approx(times * float(total), rel=1e-9), key
        assert found[key][1] == times * count
    for key in (key for key in theirs if "router" not in key):
        mine = grads[key] + grads[key.replace("others.0.", "others.1.")] if "others.0." in key else grads[key]
        torch.testing.assert_close(mine, theirs[key], rtol=1e-8, atol=1e-9, msg=key)
    assert all(float(grad.abs().max()) < 1e-9 for key, grad in grads.items() if "router" in key)


@pytest.mark.parametrize("fusion", slower(FUSIONS, {"similarity", "barlow", "mlp"}))
def test_another_order_of_teachers_is_the_same_mixture(fusion: str) -> None:
    order = [2, 0, 1]
    first = make(fusion)
    if fusion == "fixed":
        settings = (*(s for s in FUSIONS[fusion] if "weights" not in s), "mixture.weights=[0.25,0.5,0.25]")
    else:
        settings = FUSIONS[fusion]
    second = objective([THREE[i] for i in order], *settings, seed=8)
    with torch.no_grad():
        for key, weight in second.aux_state().items():
            weight.copy_(moved(key, first.aux_state(), order))
    texts = batch(THREE)
    (found, _), (wanted, _) = (
        measure(second, [mixtures.reordered(texts, order)]), measure(first, [texts])
    )  # fmt: skip
    for key, (total, count) in wanted.items():
        assert float(found[key][0]) == pytest.approx(float(total), rel=1e-9), key
        assert found[key][1] == count
    weights = [shown(kind, one) for kind, one in ((first, texts), (second, mixtures.reordered(texts, order)))]
    torch.testing.assert_close(weights[1], weights[0][..., order], rtol=1e-9, atol=1e-9)


def moved(key: str, weights: dict[str, Tensor], order: list[int]) -> Tensor:
    """A weight of the reordered mixture, from those of the first."""
    for lead in ("source.mixture.adapters.", "source.mixture.coder.others."):
        if key.startswith(lead):
            number, _, rest = key.removeprefix(lead).partition(".")
            return weights[f"{lead}{order[int(number)]}.{rest}"]
    if key.startswith("source.mixture.fusion.") and weights[key].dim():
        if key.endswith(("prototypes", "fusion.weights")):
            return weights[key][order]
        last = "source.mixture.fusion.router.net.3" if "source.mixture.fusion.router.net.3.weight" in weights else None
        if key.endswith("teachers") or (last and key.startswith(last)):  # rows: layers x teachers
            return weights[key].unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
    return weights[key]


def shown(kind: Objective, texts: dict[str, Tensor], epoch: int = 0) -> Tensor:
    """The teachers' weights."""
    with torch.no_grad():
        return explicit.views(kind, texts, Step(epoch=epoch))[1].blend.weights


def test_an_identity_teacher_comes_out_as_it_went_in() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for family in (LLAMA, "gpt2"):
            model = explicit.student(family, dtype)
            teachers = TeacherSet(("a",), (explicit.teacher(family, "same", dtype),), None)  # type: ignore[arg-type]
            kind = make_objective(mixtures.recipe_of(1), model, teachers).to(dtype).eval()
            for side in ("left", "right"):
                texts = one_text(("same",), side=side)
                texts["t0.iou"] = texts["t0.iou"].to(dtype)
                with torch.no_grad():
                    found = explicit.views(kind, texts)[1].kv
                    wanted = teachers.teachers[0](texts, TeacherWants())
                mask = texts["cot_mask"][:, None, :, None]
                for part in ("keys", "values"):
                    for mine, theirs in zip(getattr(found, part), getattr(wanted, part), strict=True):
                        gap = float(((mine - theirs) * mask).abs().max())
                        assert gap <= tolerance * float(theirs.abs().max()), (part, dtype, family)


def test_whoever_alone_has_matched_a_token_is_its_target() -> None:
    """Even where the softmax has given everything to another."""
    kind = objective(TWO, "mixture.fusion=similarity", "mixture.temperature=0.0001", *FULL)
    texts = batch(TWO, gaps=0.6)
    with torch.no_grad():
        _, seen = explicit.views(kind, texts)
    assert float(seen.blend.weights.min()) < 1e-9
    only = [seen.blend.present[i] & ~seen.blend.present[1 - i] for i in (0, 1)]
    for number, there in enumerate(only):
        mask = there[:, None, :, None]
        assert bool(mask.any())
        for fused, own in zip(seen.kv.keys, seen.blend.each[number].keys, strict=True):
            torch.testing.assert_close(fused * mask, own * mask, rtol=1e-9, atol=1e-9)


# -- batches and padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", slower(FUSIONS, {"similarity", "barlow", "mlp"}))
def test_neither_padding_nor_the_batch_changes_anything(fusion: str) -> None:
    kind, whole = make(fusion), batch(THREE, EIGHT)
    wanted = measure(kind, [whole])
    assert_same(measure(kind, [batch(THREE, EIGHT, "left")]), wanted)
    assert_same(measure(kind, cut(batch(THREE, EIGHT, "left"), 40)), wanted)
    for size in (4, 1):
        assert_same(measure(kind, [take(whole, range(first, first + size)) for first in range(0, 8, size)]), wanted)


@every_fusion
def test_counts_are_known_before_the_forward(fusion: str) -> None:
    for lengths in (UNEVEN, ((4, 0, 1), (2, 0, 2)), ((3, 1, 1),)):
        kind, texts = make(fusion), batch(THREE, lengths, gaps=0.5)
        assert {term.name: term.count for term in kind(texts).terms} == kind.counts(texts)


@every_fusion
def test_nothing_is_there_to_compare(fusion: str) -> None:
    """No chain of thought, and no token that any teacher has matched."""
    kind = make(fusion)
    for texts in (batch(THREE, ((4, 0, 1), (2, 0, 2))), batch(THREE, gaps=1.0)):
        found, grads = measure(kind, [texts])
        for name in {"kv", "guard", "attention", "kv_cosine"} & found.keys():
            assert (float(found[name][0]), found[name][1]) == (0.0, 0.0), name
        assert all(bool(grad.isfinite().all()) for grad in grads.values())
        assert any(bool(grad.any()) for grad in grads.values())


def test_a_token_without_a_partner_has_no_part() -> None:
    """What stands at it on the student's side changes no term but the cross-entropy's."""
    kind, texts = objective(TWO, *FULL, "explicit.beta_cos=1"), batch(TWO, gaps=0.6)
    student, seen = explicit.views(kind, texts)
    lost = ~seen.mask & texts["cot_mask"]
    assert bool(lost.any())
    noise = 9.0 * lost[:, None, :, None]
    noisy = replace(student, keys=[k + noise for k in student.keys], values=[v + noise for v in student.values])
    for before, after in zip(
        explicit.comparisons(kind, texts, student, seen),
        explicit.comparisons(kind, texts, noisy, seen),
        strict=True,
    ):
        torch.testing.assert_close(before.student * before.kept[..., None], after.student * after.kept[..., None])
        torch.testing.assert_close(kind.distance(before), kind.distance(after))


def test_what_the_answer_looks_at_is_compared_among_tokens_with_a_target() -> None:
    """A teacher of the student's weights that has matched half of the tokens looks at these as the student does."""
    kind = objective(("same",), "explicit.gamma_kl=1", *FULL, model=student(LLAMA, seed=7), noise=0)
    texts = one_text(("same",))
    texts["t0.iou"] = texts["t0.iou"].clone()
    texts["t0.iou"][:, ::2] = 0
    (term,) = [term for term in kind(texts).terms if term.name == "attention"]
    assert term.count == 3 * 3  # one sample has no chain of thought
    assert float(term.total.detach()) == pytest.approx(0, abs=1e-9)
    for seed in range(4):
        other = batch(TWO, gaps=0.7, seed=seed)
        found = objective(TWO, "explicit.gamma_kl=1", *FULL)(other).terms
        assert all(float(term.total.detach()) >= 0 for term in found)


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize("family", [LLAMA, "gpt2"])
def test_keys_alone_and_values_alone_reach_every_layer(family: str, part: str) -> None:
    more = (f"explicit.parts={part}", "loss.student_ce=0", "projector.guard=none")
    kind = objective(TWO, *HEAD, *FULL, *more, model=student(family))
    _, grads = measure(kind, [batch(TWO)])
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


@every_fusion
def test_all_that_is_trained_beside_the_student_gets_a_gradient(fusion: str) -> None:
    """Adapters, router and encoders; of parts and layers that are not compared nothing is trained."""
    codes = () if "z" in fusion or fusion == "barlow" else ("projector.guard=none",)
    for more in ((), ("explicit.layers=1-2",), *([("explicit.parts=k",), ("explicit.parts=v",)] if codes else [])):
        kind = make(fusion, *codes, *more)
        names = kind.trained()
        loss = add(kind(batch(THREE)).terms)
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        idle = [name for name, grad in zip(names, found, strict=True) if grad is None or not grad.any()]
        assert not [name for name in idle if not name.startswith("model.")], more
        mine = {name.split(".")[2] for name in names if not name.startswith("model.")}
        routed = {"fusion"} if "mixture.fusion=learnable" in FUSIONS[fusion] else set()
        assert mine == ({"adapters"} if codes else {"coder"}) | routed


def test_the_teachers_are_no_part_of_it_and_get_no_gradient() -> None:
    model = fresh_student(LLAMA)
    for settings in ((*HEAD, *FULL), Z):
        kind = objective(("same", "neox"), *settings, model=model)
        assert kind.mixture is not None
        theirs = [weight for one in kind.mixture.teachers.teachers for weight in one.model.parameters()]  # type: ignore[attr-defined]
        known = {id(weight) for weight in theirs}
        assert not known & {id(weight) for weight in kind.parameters()}
        assert not any(id(value) in known for value in kind.state_dict(keep_vars=True).values())
        kind.train()
        assert not any(one.model.training for one in kind.mixture.teachers.teachers)  # type: ignore[attr-defined]
        kind.eval()
        add(kind(batch(("same", "neox"))).terms).backward()
        assert all(weight.grad is None and not weight.requires_grad for weight in theirs)


def test_a_teacher_of_weight_0_changes_nothing_and_is_not_moved() -> None:
    texts = batch(TWO, gaps=0.5)
    kind = objective(TWO, "mixture.weights=[1,0]", "projector.guard=none", *HEAD, "explicit.gamma_kl=0.5")
    found, grads = measure(kind, [texts])
    assert not any(grad.any() for name, grad in grads.items() if name.startswith("source.mixture.adapters.1."))
    alone = objective(TWO[:1], "projector.guard=none", *HEAD, "explicit.gamma_kl=0.5")
    with torch.no_grad():
        for name, weight in alone.aux_state().items():
            weight.copy_(kind.aux_state()[name]) if "fusion" not in name else None
    wanted, theirs = measure(alone, [texts])
    assert_same((found, {name: grads[name] for name in theirs}), (wanted, theirs))


def test_what_weighs_does_not_move_what_it_sees() -> None:
    """The router's gradient stops at the question: alone it reaches nothing of the student."""
    more = (*ROUTED, "loss.student_ce=0", "mixture.per_token=true")
    kind = objective(TWO, *more)
    texts = batch(TWO)
    (entropy,) = [term for term in kind(texts).terms if term.name == "entropy"]
    reached = {name for name, grad in gradients(entropy.total, kind).items() if grad.any()}
    assert reached
    assert all(name.startswith("source.mixture.fusion.router") for name in reached)


# -- what the weights depend on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["hidden", "embedding"])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_answer_never_chooses_its_teachers(per_token: bool, query: str) -> None:
    kind = objective(TWO, *ROUTED, f"mixture.query={query}", f"mixture.per_token={str(per_token).lower()}")
    texts = batch(TWO, side="left")
    weights = shown(kind, texts)
    for prefix in ("", "t0.", "t1."):
        other = texts | {f"{prefix}tail": (texts[f"{prefix}tail"] + 5) % 50 + 3}
        torch.testing.assert_close(shown(kind, other), weights, rtol=0, atol=1e-12)
    cot = texts["cot"].clone()
    cot[0, 4] = (cot[0, 4] + 9) % 40 + 8
    later = shown(kind, texts | {"cot": cot})
    if not per_token:
        torch.testing.assert_close(later, weights, rtol=0, atol=1e-12)
        return
    torch.testing.assert_close(later[:, :, :4], weights[:, :, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(later[1:], weights[1:], rtol=0, atol=1e-12)
    assert float((later[0, :, 4] - weights[0, :, 4]).abs().max()) > 1e-6
    moved = float((later[0, :, 5:] - weights[0, :, 5:]).abs().max())
    assert (moved > 1e-6) == (query == "hidden")


def test_similarity_looks_at_the_question_alone() -> None:
    kind, texts = make("similarity"), batch(THREE)
    weights = shown(kind, texts)
    for name in ("tail", "cot"):
        torch.testing.assert_close(shown(kind, texts | {name: texts[name] * 0 + 9}), weights, rtol=0, atol=1e-12)
    question = texts["question"].clone()
    question[0, 0] = 40
    assert float((shown(kind, texts | {"question": question})[0] - weights[0]).abs().max()) > 1e-6


def test_the_temperature_falls_by_epochs() -> None:
    kind, texts = make("mlp", "mixture.temperature=2", "mixture.temperature_step=0.5"), batch(THREE)
    found = []
    for epoch in (0, 1, 3, 4):
        found.append(shown(kind, texts, epoch))
    heat = torch.log(found[0][..., :1] / found[0]) * 2.0
    for weights, temperature in zip(found[1:], (1.5, 0.5, 0.5), strict=True):
        torch.testing.assert_close(torch.log(weights[..., :1] / weights) * temperature, heat, rtol=1e-9, atol=1e-9)


# -- real tokenizers -------------------------------------------------------------------------------------------------


def company(*teachers: str, more: tuple[str, ...] = ()) -> tuple[Any, Any, TeachersCollator, list[Any]]:
    """Recipe, student, collator and a few encoded examples."""
    recipe = many.recipe(*teachers, more=("loss.alpha1_codi=0", *more))
    model, tokenizer = build_model(recipe)
    teachers_ = load_teacher_set(recipe, tokenizer, torch.device("cpu"))
    examples = [*many.examples()[:6], *many.examples()[-2:]]
    encoded = Encoder(tokenizer, False, recipe.dataset.cot_type).encode_batch(examples)
    torch.manual_seed(1)
    kind = make_objective(recipe, model, teachers_).eval()
    return (
        kind,
        teachers_,
        TeachersCollator(Collator(tokenizer.pad_token_id), teachers_.tokenizations, texts_of(examples)),
        encoded,
    )


def test_resting_teachers_say_what_present_ones_say() -> None:
    words = (many.entry("llama"), many.entry("gpt2"), many.entry("llama", name="again", prompt="cot"))
    found = []
    for residence in ("together", "one_at_a_time"):
        kind, _, collate, rows = company(*words, more=(f"mixture.residence={residence}", *HEAD))
        mixtures.disturb(kind)
        found.append(measure(kind, [collate(rows)]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


def test_a_prompt_changes_what_is_said_and_not_which_tokens_match() -> None:
    words = (many.entry("llama", name="plain"), many.entry("llama", name="cot", prompt="cot"))
    _, teachers, collate, rows = company(*words)
    texts = collate(rows)
    assert torch.equal(texts["t0.iou"], texts["t1.iou"])
    assert torch.equal(texts["t0.cot"], texts["t1.cot"])
    assert texts["t0.question"].shape[1] < texts["t1.question"].shape[1]
    plain, cot = teachers(texts, TeacherWants(rotary=False))
    real = view(texts, 0)["cot_mask"][:, None, :, None]
    for mine, theirs in zip([*plain.keys[1:], *plain.values[1:]], [*cot.keys[1:], *cot.values[1:]], strict=True):
        assert float(((mine - theirs) * real).abs().max()) > 1e-3
    gap = ((plain.keys[0] - cot.keys[0]) * real).abs().max()  # the first layer sees single tokens: keys without places
    assert float(gap) < 1e-4


def test_the_students_own_base_as_teacher_leaves_nothing_to_learn() -> None:
    """Same weights, same tokens, through folder, tokenizer and collator."""
    kind, _, collate, rows = company(many.entry("small"), more=("rkv.method=full",))
    found = held_out(kind, rows, collate, 3)
    assert found is not None
    assert found["kv"] == pytest.approx(0, abs=1e-9)
    assert found["kv_small"] == pytest.approx(0, abs=1e-9)
    assert found["cossim"] == pytest.approx(1, abs=1e-6)


# -- held out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", slower(FUSIONS, FUSIONS.keys() - {"mlp", "z"}))
def test_held_out_numbers_are_those_of_the_examples_alone(fusion: str) -> None:
    kind, texts = make(fusion), batch(THREE, EIGHT, gaps=0.4)
    rows = [type("Row", (), {"at": i, "__len__": lambda self: 5 + 7 * self.at % 11})() for i in range(8)]
    first = held_out(kind, rows, lambda part: take(texts, [row.at for row in part]), 4)
    assert first is not None
    assert {"kv", "kv_unexplained", "kv_m0", "kv_m1", "kv_m2", "target_variation", "cossim_centred"} <= first.keys()
    kind.train()
    for size in (1, 3):
        found = held_out(kind, rows, lambda part: take(texts, [row.at for row in part]), size)
        assert found is not None
        for name, value in first.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert kind.training


def test_held_out_is_the_training_distance_of_everything() -> None:
    """mse without a standard deviation, on all that is matched: kv and kv_<teacher> are mean squared differences."""
    plain = ("loss.kv_loss_type=mse", "loss.layerwise_std=false", *FULL)
    kind, texts = objective(TWO, *plain), batch(TWO, EIGHT, gaps=0.5)
    rows = [type("Row", (), {"at": i, "__len__": lambda self: 5})() for i in range(8)]
    found = held_out(kind, rows, lambda part: take(texts, [row.at for row in part]), 8)
    (term,) = [term for term in kind(texts).terms if term.name == "kv"]
    assert found is not None
    assert found["kv"] == pytest.approx(float(term.value().detach()), rel=1e-9)
    for number in (0, 1):
        student, seen = explicit.views(kind, texts)
        pairs = explicit.comparisons(kind, texts, student, Target(seen.blend.each[number], seen.blend.present[number]))
        total = sum(float(((o.student - o.target) * o.kept[..., None]).detach().square().sum()) for o in pairs)
        assert found[f"kv_m{number}"] == pytest.approx(total / sum(int(one.kept.sum()) * 6 for one in pairs), rel=1e-9)


# -- before the first update -----------------------------------------------------------------------------------------


def test_teachers_begin_with_the_students_mean_and_spread() -> None:
    """Dimension by dimension, of keys before their rotation and of values; and the guard knows what a sample varies."""
    kind, texts = objective(TWO, *FULL), batch(TWO, EIGHT, gaps=0.0)
    kind.train()
    calibrate(kind, [take(texts, range(5)), take(texts, range(5, 8))], "moments")
    assert kind.training
    kind.eval()
    student, _ = kind.view(texts)
    keys, values = kind.mixture.mixture.unrotated(texts, student.keys), student.values
    for number, seen in enumerate(kind.mixture.teachers(texts, TeacherWants(rotary=False))):
        for mine, theirs in zip((keys, values), kind.mixture.mixture.align(number, texts, seen), strict=True):
            for own, other in zip(mine, theirs, strict=True):
                own, other = (part.transpose(1, 2).flatten(2)[texts["cot_mask"]] for part in (own, other))
                torch.testing.assert_close(other.mean(0), own.mean(0), rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(other.std(0), own.std(0), rtol=1e-9, atol=1e-9)
    rows = [v.transpose(0, 1).flatten(1)[m] for v, m in zip(values[1], texts["cot_mask"], strict=True) if m.sum() > 1]
    wanted = torch.stack([row.std(0) for row in rows]).mean(0)
    torch.testing.assert_close(kind.mixture.mixture.reference[1, 1], wanted, rtol=1e-9, atol=1e-9)


# -- the latent line -------------------------------------------------------------------------------------------------


def latents(*settings: str, words: tuple[str, ...] | None = None, noise: float = 0.0) -> Objective:
    """Around the tiny latent model: with `words` these teach it; empty: its own frozen base does."""
    model = zoo.latent_model(LLAMA)
    teachers: TeacherSet | None = None
    if words is not None:
        teachers = mixtures.company(words) if words else own_base(model)
    names = ", ".join(f"{{name: m{n}, model: x}}" for n in range(len(words or "1")))
    mixed = [f"mixture.teachers=[{names}]", "mixture.query=embedding"] if words is not None else []
    routed = [s for s in mixed if "query" not in s or any("learnable" in s for s in settings)]
    plain = ["latent.num_tokens=4", "latent.num_iterations=3", "loss.alpha1_codi=2", "rkv.method=rkv"]
    recipe = load_recipe("embedded", [*plain, *routed, *settings])
    kind = make_objective(recipe, model, teachers).double().eval()
    mixtures.disturb(kind, noise=noise)
    return kind


def own_base(model: Any) -> TeacherSet:
    teacher = mixtures.live(copy.deepcopy(model.causal_lm), LLAMA)
    return TeacherSet(("own",), (teacher,), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", slower(["rkv", "full", "crop"], {"full", "crop"}))
def test_a_latent_students_own_base_teaches_what_the_student_teaches_itself(method: str) -> None:
    """One teacher, its text and its weights: the terms and the gradients of the latent line without a mixture."""
    plain = latents(f"rkv.method={method}")
    for side in ("right", "left"):
        texts = one_text(("own",), side=side)
        wanted, grads = compare.measure(plain, texts)
        fixed = latents(f"rkv.method={method}", "projector.trainable=false", words=())
        found, theirs = compare.measure(fixed, texts)
        assert found["kv"] > 0
        compare.assert_same((found, theirs), (wanted, grads), 1e-9)
    trained = latents(f"rkv.method={method}", "projector.guard=none", words=())
    total = {term.name: term.total for term in trained(texts).terms}
    torch.testing.assert_close(total["kv"] / plain.counts(texts)["kv"], wanted["kv"], rtol=1e-9, atol=1e-9)
    reached = gradients(total["kv"], trained)
    assert all(bool(grad.any()) for name, grad in reached.items() if name.startswith("foreign."))


@pytest.mark.parametrize(
    "settings",
    [
        ("mixture.entropy=diverse", "mixture.fusion=learnable", "mixture.per_layer=true"),
        ("mixture.weights=[0.75,0.25]",),
    ],
    ids=["learnable", "fixed"],
)
def test_neither_padding_nor_the_batch_changes_what_latents_learn(settings: tuple[str, ...]) -> None:
    kind = latents(*settings, words=TWO, noise=0.3)
    whole = batch(TWO, EIGHT, gaps=0.4)
    wanted = measure(kind, [whole])
    left = batch(TWO, EIGHT, "left", gaps=0.4)
    for parts in ([left], cut(left, 40), [take(whole, range(i, i + 2)) for i in range(0, 8, 2)]):
        assert_same(measure(kind, parts), wanted)
    trained = {name: grad for name, grad in wanted[1].items() if name.startswith("foreign.")}
    assert all(bool(grad.any()) for grad in trained.values())
    assert trained.keys() == {name for name in kind.trained() if name.startswith("foreign.")}
