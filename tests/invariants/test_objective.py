"""The whole loss: three ways of computing it agree, and nothing but the samples' content changes it. Dropout is off."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor

import zoo
from compare import (
    TERMS,
    TOLERANCE,
    UNEVEN,
    assert_same,
    gradients,
    measure,
    measure_by_hand,
    measure_sums,
    objective,
    plain_attention,
    take,
)
from kava.backbone.kv import keywords_arrive
from kava.backbone.model import LatentModel
from kava.backbone.recompute import recompute_layers
from kava.compress import COMPRESSORS, make_compressor
from kava.compress.rkv import RKV
from kava.data.cut import cut
from kava.errors import ModelError
from kava.losses import add
from kava.objective.calibration import measure_scale
from kava.objective.compare import Sides
from kava.objective.records import PassOutputs, Step, StudentView
from kava.objective.unpacked import unpacked

CORE = "llama-gqa"
EVERYTHING = PassOutputs(teacher=True, student=True, kv=True, codi=True)


def combine(name: str, values: dict[str, object]):
    """Every family with every value; of the other families all but the first value wait for the long run."""
    return pytest.mark.parametrize(
        ("family", name),
        [
            pytest.param(family, value, id=f"{family}-{word}", marks=[pytest.mark.long] * (family != CORE and i > 0))
            for family in zoo.FAMILIES
            for i, (word, value) in enumerate(values.items())
        ],
    )


every_family = pytest.mark.parametrize("family", list(zoo.FAMILIES))
both_forms = pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
every_family_both_forms = combine("packed", {"packed": True, "unpacked": False})
every_family_both_types = combine("dtype", {"float64": torch.float64, "float32": torch.float32})


@cache
def model_of(family: str, dtype: torch.dtype = torch.float64, **latent: object) -> LatentModel:
    model = zoo.latent_model(family, dtype=dtype, **latent)
    if dtype == torch.float32:  # tamer weights: the usual ones of the zoo amplify rounding a hundredfold
        with torch.no_grad():
            for name, weight in model.backbone.named_parameters():
                weight.mul_(0.6 if weight.ndim > 1 else 0.2 if constant(name) else 1)
    return model


@every_family_both_types
def test_packed_unpacked_and_by_hand_agree_on_both_padding_sides(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    wanted = measure_by_hand(model, zoo.batch(UNEVEN), by_term=True)
    assert min(wanted[0].values()) > 0.01
    for packed, side in ((True, "right"), (True, "left"), (False, "right"), (False, "left")):
        found = measure(objective(model, packed), zoo.batch(UNEVEN, side), by_term=True)
        assert_same(found, wanted, TOLERANCE[dtype])
    with under_one_mask(model):
        assert_same(measure(objective(model), zoo.batch(UNEVEN), by_term=True), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("window", [1, 3, 6, None])
@pytest.mark.parametrize("latent", [(4, 3), (4, 0), (0, 3)], ids="M{0[0]}-T{0[1]}".format)
def test_branches_are_the_tree_under_one_dense_mask(window: int | None, latent: tuple[int, int]) -> None:
    """With windows narrower than a question, a text and the latents; one mode alone, too."""
    model = zoo.latent_model(CORE, num_tokens=latent[0], num_iterations=latent[1])
    model.windows = [window, None, window]
    off = {"alpha1_codi": 0, "alpha2_kv": 0}
    for settings in ({"alpha2_kv": float(latent[0] > 0)}, {**off, "student_ce": 0}, {**off, "teacher_ce": 0}):
        kind, batch = objective(model, **settings), zoo.batch(UNEVEN, "left")
        found, plain = measure(kind, batch, by_term=True), measure(objective(model, False, **settings), batch, True)
        with under_one_mask(model):
            assert_same(measure(kind, batch, by_term=True), found, 1e-9)
        assert_same(plain, found, 1e-9)


@contextmanager
def under_one_mask(model: LatentModel) -> Iterator[None]:
    """system.attention=dense while it lasts."""
    model.dense_attention = True
    yield
    model.dense_attention = False


@pytest.mark.parametrize("latent", [(0, 3), (4, 0), (4, 1), (1, 3), (9, 2)], ids="M{0[0]}-T{0[1]}".format)
def test_they_agree_for_any_number_of_latents_and_rounds(latent: tuple[int, int]) -> None:
    model = model_of(CORE, num_tokens=latent[0], num_iterations=latent[1])
    off = {} if latent[0] else {"alpha2_kv": 0}
    wanted = measure_by_hand(model, zoo.batch(UNEVEN))
    for packed in (True, False):
        found = measure(objective(model, packed, **off), zoo.batch(UNEVEN))
        if off:
            found[0]["kv"] = torch.zeros(())
        assert_same(found, wanted, 1e-9)


@both_forms
def test_a_batch_without_any_chain_of_thought(packed: bool) -> None:
    model = model_of(CORE)
    batch = zoo.batch(((4, 0, 1), (2, 0, 2)))
    found = measure(objective(model, packed), batch)
    assert float(found[0]["kv"]) == 0
    assert_same(found, measure_by_hand(model, batch), 1e-9)


@every_family_both_types
def test_batch_composition_changes_nothing(family: str, dtype: torch.dtype) -> None:
    kind, batch = objective(model_of(family, dtype)), zoo.batch(UNEVEN)
    whole = measure(kind, batch)
    for parts in ([[0], [1], [2], [3]], [[3, 1], [2, 0]]):
        assert_same(measure_sums(kind, [take(batch, rows) for rows in parts]), whole, TOLERANCE[dtype])
    for side in ("right", "left"):
        assert_same(measure_sums(kind, cut(zoo.batch(UNEVEN, side), 30)), whole, TOLERANCE[dtype])


@pytest.mark.parametrize("method", list(COMPRESSORS))
@pytest.mark.parametrize("shuffle", ["none", "time"])
def test_batch_composition_for_every_compressor(method: str, shuffle: str) -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    compressor = make_compressor(method, shuffle)
    whole = measure(objective(model, compressor=compressor), zoo.batch(UNEVEN, "left"))
    parts = [take(batch, rows) for rows in ([2], [3, 0], [1])]
    assert_same(measure_sums(objective(model, packed=False, compressor=compressor), parts), whole, 1e-9)


def test_shuffled_across_examples_is_the_kv_term_of_the_batch_partner() -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    plain = measure(objective(model), batch)
    for packed in (True, False):
        kind = objective(model, packed, make_compressor("rkv", "examples", lambda_=0.1))
        found = measure(kind, batch)
        assert kind.counts(batch)["kv"] == objective(model).counts(batch)["kv"]
        assert abs(float(found[0]["kv"] - plain[0]["kv"])) > 1e-3
        for name in TERMS[:3]:
            assert torch.equal(found[0][name], plain[0][name]) or not packed


@pytest.mark.parametrize("method", ["rkv", "full"])
def test_shuffled_in_time_changes_the_kv_term_alone(method: str) -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    plain, found = (measure(objective(model, compressor=make_compressor(method, s)), batch) for s in ("none", "time"))
    assert abs(float(found[0]["kv"] - plain[0]["kv"])) > 1e-3
    assert all(torch.equal(found[0][name], plain[0][name]) for name in TERMS[:3])


@pytest.mark.parametrize(
    ("scope", "kind", "layerwise"),
    [("sample", "mse", True), ("sample", "l1", False), ("batch", "smooth_l1", True), ("batch", "mse", False)],
)
def test_loss_settings_hold_for_both_forms_and_sides(scope: str, kind: str, layerwise: bool) -> None:
    settings = {"std_scope": scope, "kv_loss_type": kind, "codi_loss_type": kind, "layerwise_std": layerwise}
    model = model_of(CORE)
    wanted = measure(objective(model, **settings), zoo.batch(UNEVEN))
    found = measure(objective(model, packed=False, **settings), zoo.batch(UNEVEN, "left"))
    assert_same(found, wanted, 1e-9)


def test_the_scale_of_dimensions_and_centred_keys_hold_for_both_forms_any_side_and_any_batch() -> None:
    model, batch = model_of("qwen2"), zoo.batch(UNEVEN)
    kinds = [objective(model, packed, RKV(centred=True), kv_scale="dim") for packed in (True, False)]
    for kind in kinds:
        measure_scale(kind, [zoo.batch(UNEVEN, seed=3), zoo.batch(UNEVEN, "left", seed=6)])
    torch.testing.assert_close(kinds[0].kv_scale.state_dict(), kinds[1].kv_scale.state_dict())
    kinds[1].kv_scale = kinds[0].kv_scale
    wanted = measure(kinds[0], batch)
    assert_same(measure(kinds[1], zoo.batch(UNEVEN, "left")), wanted, 1e-9)
    for kind in kinds:
        assert_same(measure_sums(kind, [take(batch, rows) for rows in ([3, 1], [2], [0])]), wanted, 1e-9)


@pytest.mark.parametrize("off", ["student_ce", "teacher_ce", "alpha1_codi", "alpha2_kv"])
@both_forms
def test_a_term_that_is_off_changes_no_other(off: str, packed: bool) -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    terms = {"student_ce": "ce_student", "teacher_ce": "ce_teacher", "alpha1_codi": "codi", "alpha2_kv": "kv"}
    wanted = measure(objective(model, packed), batch)
    kind = objective(model, packed, **{off: 0})
    result = kind(batch)
    weights = {term.name: term.weight for term in result.terms}
    assert float(add(result.terms).detach()) == pytest.approx(
        float(sum(weights.get(name, 0) * value for name, value in wanted[0].items())), abs=1e-9
    )
    assert weights.get(terms[off], 0) == 0


@both_forms
def test_one_mode_alone_is_not_run_for_nothing(packed: bool) -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    wanted = measure(objective(model, packed), batch, by_term=True)
    for name, off in (("ce_teacher", "student_ce"), ("ce_student", "teacher_ce")):
        found = measure(objective(model, packed, alpha1_codi=0, alpha2_kv=0, **{off: 0}), batch, by_term=True)
        assert list(found[0]) == [name]
        assert_same(found, ({name: wanted[0][name]}, {name: wanted[1][name]}), 1e-9)


def test_the_shares_of_keys_values_and_layers_are_those_of_the_kv_term() -> None:
    """In updates that are logged; a piece of the batch at a time they add up to those of the whole."""
    kind, batch = objective(model_of("qwen2"), kv_loss_type="mse", layerwise_std=False), zoo.batch(UNEVEN)
    with torch.no_grad():
        whole = kind(batch)
        student, own = kind.view(batch)
        target = kind.source(batch, (student, own), kind.teacher_wants(), Step())
        pairs = list(kind.compare(Sides(batch, student, target, kind.samples(batch))))
        wanted = {f"kv_share_{pair.kind}_{pair.layer}": float(kind.distance(pair)) for pair in pairs}
        pieces = [kind(take(batch, rows)) for rows in ([0, 2], [1], [3])]
        assert not any("share_k" in name for name in kind(batch, Step(log=False)).health)
    total = sum(wanted.values())
    shares = {name: figure for name, figure in whole.health.items() if name.startswith("kv_share_")}
    assert shares.keys() == {"kv_share_k", "kv_share_v", *wanted}
    for name, value in wanted.items():
        assert float(shares[name]) == pytest.approx(value / total, rel=1e-9)
    assert float(shares["kv_share_k"]) + float(shares["kv_share_v"]) == pytest.approx(1, abs=1e-9)
    assert float(shares["kv_share_k"]) > 0.9  # keys of this size are the loss, as they are in pretrained models
    for name, figure in shares.items():
        assert float(sum((p.health[name] for p in pieces[1:]), pieces[0].health[name])) == pytest.approx(float(figure))


# -- gradients -------------------------------------------------------------------------------------------------------


@every_family_both_forms
def test_checkpointing_changes_nothing(family: str, packed: bool) -> None:
    model, batch = zoo.latent_model(family), zoo.batch(UNEVEN)
    if not keywords_arrive(model.family):
        pytest.skip("refused with this transformers: test_checkpointing_is_refused_where_keywords_are_lost")
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    wanted = measure(objective(model, packed), batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a library's notice of a method that will go would be on the user's screen
        recompute_layers(model.causal_lm, model.family)
    model.train()
    calls: list[int] = []
    layers(model)[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    objective(model, packed)(batch)
    once = len(calls)
    assert_same(measure(objective(model, packed), batch), wanted, 1e-9)
    assert len(calls) == 3 * once, "nothing was recomputed: checkpointing was not on"


def test_checkpointing_is_refused_where_keywords_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kava.backbone.recompute.keywords_arrive", lambda family: False)
    model = zoo.latent_model("gpt2")
    with pytest.raises(ModelError, match="gradient_checkpointing cannot be used with gpt2"):
        recompute_layers(model.causal_lm, model.family)


def layers(model: LatentModel) -> list[torch.nn.Module]:
    return list(model.decoder.h if hasattr(model.decoder, "h") else model.decoder.layers)


@every_family_both_forms
def test_each_term_reaches_each_layer_and_the_projection(family: str, packed: bool) -> None:
    model = model_of(family)
    _, grads = measure(objective(model, packed), zoo.batch(UNEVEN), by_term=True)
    for term, found in grads.items():
        for index, layer in enumerate(layers(model)):
            names = [name for name, weight in model.named_parameters() if any(weight is w for w in layer.parameters())]
            unreached = [name for name in names if not found[name].any() and not constant(name)]
            assert not unreached, f"{term} does not reach {unreached} of layer {index}"
        for name in (name for name in found if name.startswith("project.")):
            assert bool(found[name].any()) == (term != "ce_teacher"), f"{term} at {name}"
        tied = model.config.tie_word_embeddings  # then every row is an output too, and gets a gradient from there
        if not tied or not term.startswith("ce"):
            table = next(name for name in found if name.endswith(("embed_tokens.weight", "wte.weight")))
            reached = [bool(found[table][row].any()) for row in model.special.ids]
            assert reached == [term != "ce_teacher", term != "ce_teacher", term not in ("ce_teacher", "kv")], term


def constant(name: str) -> bool:
    """A key's bias adds the same to every logit of a query and cancels in the softmax, unless keys are compared."""
    return name.endswith("k_proj.bias")


@every_family_both_forms
def test_targets_get_no_gradient(family: str, packed: bool) -> None:
    """The distillation terms' gradients are those of a student taught by somebody else with the same weights."""
    model, batch = model_of(family), zoo.batch(UNEVEN)
    frozen = copy.deepcopy(model).requires_grad_(False)
    teacher, _ = unpacked(frozen, batch, EVERYTHING)
    _, student = unpacked(model, batch, EVERYTHING)
    assert teacher is not None
    assert student is not None
    kind = objective(model, packed)
    _, grads = measure(kind, batch, by_term=True)
    counts = kind.counts(batch)
    assert kind.source is not None
    assert kind.compare is not None
    target = kind.source(batch, (student, teacher), kind.teacher_wants(), Step())
    kv = torch.stack(
        [kind.distance(pair) / 2 for pair in kind.compare(Sides(batch, student, target, kind.samples(batch)))]
    )
    for name, total in (("codi", kind.aux_terms["codi"](batch, student, target)), ("kv", kv.sum())):
        wanted = gradients(total / counts[name], model)
        for weight, grad in wanted.items():
            torch.testing.assert_close(grads[name][weight], grad, rtol=1e-9, atol=1e-9, msg=f"{name} at {weight}")


@both_forms
def test_the_chain_of_thought_is_trained_by_the_teachers_own_loss_alone(packed: bool) -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    batch["cot"] = 54 + batch["cot"] % 4  # ids that stand nowhere else
    _, grads = measure(objective(model, packed), batch, by_term=True)
    reached = {term: bool(found["backbone.model.embed_tokens.weight"][54:58].any()) for term, found in grads.items()}
    assert reached == {"ce_student": False, "ce_teacher": True, "codi": False, "kv": False}


# -- latents ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def views(model: LatentModel, batch: dict[str, Tensor]) -> StudentView:
    _, student = unpacked(model, batch, EVERYTHING)
    assert student is not None
    return student


@every_family_both_forms
def test_as_many_rounds_as_latents_is_sequential_decoding(family: str, packed: bool) -> None:
    batch = zoo.batch(UNEVEN)
    wanted = measure(objective(model_of(family, method="sequential"), packed), batch)
    for rounds in (4, 5) if family == CORE else (4,):
        assert_same(measure(objective(model_of(family, num_iterations=rounds), packed), batch), wanted, 1e-9)


@combine("rounds", {"T2": 2, "T1": 1, "T3": 3})
def test_the_first_latents_are_exact_after_as_many_rounds(family: str, rounds: int) -> None:
    batch = zoo.batch(UNEVEN)
    exact = views(model_of(family, method="sequential"), batch)
    found = views(model_of(family, num_iterations=rounds), batch)
    assert found.latents is not None
    assert exact.latents is not None
    torch.testing.assert_close(found.latents[:, :rounds], exact.latents[:, :rounds], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found.latents[:, rounds], exact.latents[:, rounds], rtol=1e-3)
    for mine, right in zip([*found.keys, *found.values], [*exact.keys, *exact.values], strict=True):
        torch.testing.assert_close(mine[:, :, :rounds], right[:, :, :rounds], rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("latent", [(4, 0), (0, 3)], ids=["pause-tokens", "no-latents"])
def test_nothing_fed_back_is_one_plain_forward(family: str, latent: tuple[int, int]) -> None:
    model = model_of(family, num_tokens=latent[0], num_iterations=latent[1])
    batch = zoo.batch(UNEVEN)
    found = {t.name: t for t in objective(model, alpha2_kv=0)(batch).terms}["ce_student"]
    total, special = 0.0, model.special
    with plain_attention(model) as lm, torch.no_grad():
        for row in range(len(UNEVEN)):
            question, tail = (batch[n][row][batch[f"{n}_mask"][row]].tolist() for n in ("question", "tail"))
            ids = [*question, special.bot, *[special.latent] * latent[0], special.eot, *tail]
            logits = lm(torch.tensor([ids])).logits[0, -len(tail) - 1 : -1]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum"))
    assert float(found.total.detach()) == pytest.approx(total, abs=1e-9)
    assert found.count == float(batch["tail_mask"].sum())


@every_family
def test_distilled_kv_is_that_of_one_plain_causal_forward(family: str) -> None:
    model, batch = model_of(family), zoo.batch(UNEVEN)
    student = views(model, batch)
    assert student.latents is not None
    with plain_attention(model) as lm, torch.no_grad():
        for row in range(len(UNEVEN)):
            question = batch["question"][row][batch["question_mask"][row]].tolist()
            words = model.embed(torch.tensor([[*question, model.special.bot]]))
            embeds = torch.cat([words, student.latents[row : row + 1]], dim=1)
            cache = lm.base_model(inputs_embeds=embeds, use_cache=True).past_key_values
            for layer, (keys, values) in enumerate(zip(student.keys, student.values, strict=True)):
                for mine, cached in ((keys, cache.layers[layer].keys), (values, cache.layers[layer].values)):
                    torch.testing.assert_close(mine[row], cached[0, :, words.shape[1] :], rtol=1e-9, atol=1e-9)


def test_health_is_measured_when_watched_and_says_what_it_should() -> None:
    model, batch = model_of(CORE), zoo.batch(UNEVEN)
    kind = objective(model)
    health = kind(batch).health
    kept = sum(min(cot, 4) for _, cot, _ in UNEVEN)
    assert float(health["kept_share"]) == pytest.approx(kept / (4 * len(UNEVEN)))
    assert float(health["jacobi_residual"]) > 0.01
    exact = objective(model_of(CORE, num_iterations=4))(batch).health
    assert float(exact["jacobi_residual"]) == pytest.approx(0, abs=1e-9)
    assert kind(batch, Step(log=False)).health == {}
