"""loss.kv_scale dim: against plain loops on both lines; constants and units of dimensions do not change the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import oracle_losses as slow
import pytest
import torch
from torch import Tensor

import explicit
import mixtures
import zoo
from compare import objective as latent_objective
from compare import take
from kava.compress import make_compressor, redundancy
from kava.compress.shuffle import ShuffleExamples
from kava.config import load_recipe
from kava.errors import ConfigError, DataError
from kava.objective.calibration import measure_scale
from kava.objective.compare import KVComparison, Sides
from kava.objective.moments import Moments
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.training import aux_state

EIGHT = explicit.EIGHT
NUMBERS = ("mse", "smooth_l1", "l1")
Maker = Callable[..., Objective]


def latent(kind: str = "mse", **loss: object) -> Objective:
    settings = {"kv_loss_type": kind, "kv_scale": "dim", **loss}
    return latent_objective(zoo.latent_model("llama-gqa"), **settings).double()


def shaped(shape: str, *more: str) -> Maker:
    def make(kind: str = "mse", kv_scale: str = "dim") -> Objective:
        return explicit.make(shape, f"loss.kv_loss_type={kind}", f"loss.kv_scale={kv_scale}", *more)

    return make


MAKERS: dict[str, Maker] = {
    "latent": latent,
    "head": shaped("head"),
    "up": shaped("up", "explicit.attention_weighted_after=100"),
    "down": shaped("down"),
    "whole": shaped("whole"),
}


def batches() -> list[dict[str, Tensor]]:
    """Two that moments are taken from."""
    whole = zoo.batch(EIGHT, seed=4)
    return [take(whole, range(3)), take(whole, range(3, 8))]


def compared(kind: Objective, batch: dict[str, Tensor]) -> list[KVComparison]:
    """What the recipe compares, before any scale."""
    student, _ = views = kind.view(batch)
    assert student is not None
    assert kind.source is not None
    assert kind.compare is not None
    target = kind.source(batch, views, kind.teacher_wants(), Step())
    return list(kind.compare(Sides(batch, student, target, kind.samples(batch))))


def kv_of(kind: Objective, batch: dict[str, Tensor]) -> Tensor:
    return next(term for term in kind(batch).terms if term.name == "kv").value()


@pytest.mark.parametrize(
    ("make", "kind_of_loss"),
    [*((latent, number) for number in NUMBERS), *((make, "mse") for make in MAKERS.values() if make is not latent)],
    ids=[*(f"latent-{number}" for number in NUMBERS), *(name for name in MAKERS if name != "latent")],
)
def test_the_loss_is_that_of_plain_loops(make: Maker, kind_of_loss: str) -> None:
    kind, batch = make(kind_of_loss), zoo.batch(EIGHT, seed=5)
    kind.train()
    state = torch.get_rng_state()
    measure_scale(kind, batches())
    assert kind.training
    assert torch.equal(torch.get_rng_state(), state)
    kind.eval()
    pools: dict[tuple[str, int], list] = {}
    for part in batches():
        for pair in compared(kind, part):
            pools.setdefault((pair.kind, pair.layer), []).append((pair.target.tolist(), pair.kept.tolist()))
    total = 0.0
    for pair in compared(kind, batch):
        leaf = pair.student.detach().requires_grad_()
        lists = leaf.tolist(), pair.target.tolist(), pair.kept.tolist()
        value, gradient = slow.kv_loss_by_dim(*lists, kind_of_loss, slow.moments_by_dim(pools[pair.kind, pair.layer]))
        fast = kind.distance(kind.kv_scale(replace(pair, student=leaf, target=pair.target.detach())))
        assert float(fast.detach()) == pytest.approx(value, rel=1e-9)
        fast.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        total += value / 2  # keys and values have half the term each
    term = next(term for term in kind(batch).terms if term.name == "kv")
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-9)


def disturb(kind: Objective) -> None:
    """Gives every dimension another constant and another unit, the same on both sides."""
    inner = kind.compare.forward

    def forward(sides: Sides) -> Iterator[KVComparison]:
        for pair in inner(sides):
            shape = pair.target.shape[1], 1, pair.target.shape[3]
            draw = torch.Generator().manual_seed(2 * pair.layer + (pair.kind == "v"))
            unit, constant = (torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(2))
            student, target = (part * unit.sign() * unit.exp() + 800 * constant for part in (pair.student, pair.target))
            yield replace(pair, student=student, target=target)

    kind.compare.forward = forward  # type: ignore[method-assign]


def measured(kind: Objective, batch: dict[str, Tensor]) -> float:
    """The KV term after a calibration."""
    measure_scale(kind, batches())
    distance = float(kv_of(kind, batch).detach())
    vars(kind.compare).pop("forward", None)  # of a disturbed one
    return distance


@pytest.mark.parametrize(
    ("name", "kind_of_loss"),
    [*(("latent", number) for number in NUMBERS), ("head", "smooth_l1"), ("up", "hybrid"), ("whole", "mercator")],
)
def test_neither_constants_nor_units_of_dimensions_change_it(name: str, kind_of_loss: str) -> None:
    """On both sides, moments taken anew. With other scales they do change it."""
    batch, make = zoo.batch(EIGHT, seed=5), MAKERS[name]
    plain, disturbed = make(kind_of_loss), make(kind_of_loss)
    disturb(disturbed)
    assert measured(disturbed, batch) == pytest.approx(measured(plain, batch), rel=1e-6)
    if name == "latent":
        for scale in ("layer", "none"):
            plain, disturbed = (make(kind_of_loss, kv_scale=scale) for _ in range(2))
            disturb(disturbed)
            assert measured(disturbed, batch) != pytest.approx(measured(plain, batch), rel=0.01)


def test_moments_are_those_of_all_vectors_at_once_around_any_mean() -> None:
    """In portions, one of them empty, the first a single one; varying by 1 around 10 million."""
    vectors = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    moments = Moments()
    for part in (vectors[:1], vectors[1:1], vectors[1:40], vectors[40:]):
        moments.add(part)
    torch.testing.assert_close(moments.mean, vectors.mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(moments.std, vectors.std(0, unbiased=False), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_dimension_without_variation_is_left_out(dtype: torch.dtype) -> None:
    """Rounding around a large constant is no variation; what varies little around a small one is."""
    kind = latent()
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=draw, dtype=torch.float64)
    vectors = vectors * torch.tensor([1, 0, 0, 1e-3, 1, 5]) + torch.tensor([0, 300.7, 0, 0, 3, 300])
    noise = 0.2 * torch.finfo(dtype).eps * 300.7 * torch.randn(50, generator=draw, dtype=torch.float64)
    vectors[:, 1] += noise
    moments = Moments()
    moments.add(vectors.to(dtype))
    places = [(part, layer) for part in "kv" for layer in range(3)]
    kind.kv_scale.set({place: [moments, moments] for place in places})
    assert (kind.kv_scale.inverse[0, 1, :, 0] > 0).tolist() == [[True, False, False, True, True, True]] * 2


def test_constants_of_keys_as_pretrained_models_have_them() -> None:
    """The zoo's qwen2: norms of Qwen2.5, first layers nearly constant; raw redundancy is flat there, and centred is not."""
    model = zoo.latent_model("qwen2")
    kind, batch = latent_objective(model, kv_loss_type="mse", kv_scale="dim"), zoo.batch(((5, 20, 2), (6, 20, 3)))
    with torch.no_grad():
        _, own = kind.view(batch)
    assert own is not None
    norms = []
    for key in own.keys:
        apart = key - key.mean((0, 2), keepdim=True)
        norms.append([float(part.norm(dim=-1).mean()) for part in (key, apart)])
    assert [100 < norm < 1000 for norm, _ in norms] == [True, True, False]
    assert all(10 < around < 40 for _, around in norms)
    raw, centred = (redundancy(own.keys[0], batch["cot_mask"], centred) for centred in (False, True))
    assert float(raw.max() / raw.min()) < 1.01 < 1.1 < float(centred.max() / centred.min())
    measure_scale(kind, [batch])
    for pair in compared(kind, batch):
        scaled = kind.kv_scale(pair).target.transpose(1, 2)[pair.kept.transpose(1, 2)]
        torch.testing.assert_close(scaled.std(0, unbiased=False), torch.ones_like(scaled[0]), rtol=0, atol=1e-5)


def test_layer_and_none_are_the_parents_two() -> None:
    batch = zoo.batch(EIGHT)
    for scale, std in (("layer", True), ("none", False)):
        one, other = latent(kv_scale=scale, layerwise_std=not std), latent(kv_scale=None, layerwise_std=std)
        assert float(kv_of(one, batch).detach()) == float(kv_of(other, batch).detach())
        assert one.kv_scale is other.kv_scale is None
        assert not one.aux_state()


def test_entries_of_partners_are_measured_where_there_are_partners() -> None:
    """A last portion of one example is passed over; the order of the entries does not matter."""
    shuffled = latent_objective(
        zoo.latent_model("llama-gqa"), compressor=ShuffleExamples(inner=make_compressor("rkv")), kv_scale="dim"
    )
    plain = latent_objective(zoo.latent_model("llama-gqa"), kv_scale="dim")
    batch = zoo.batch(EIGHT)
    measure_scale(shuffled, [batch, zoo.batch(((5, 9, 2),))])
    measure_scale(plain, [batch])
    torch.testing.assert_close(shuffled.kv_scale.mean, plain.kv_scale.mean)


def test_too_few_entries_are_refused() -> None:
    with pytest.raises(DataError, match="only 1 entries of a chain of thought"):
        measure_scale(latent(), [zoo.batch(((5, 1, 2), (3, 0, 1)))])


def test_a_scale_that_was_never_measured_gives_no_number() -> None:
    assert math.isnan(float(kv_of(latent(), zoo.batch(EIGHT)).detach()))


def test_the_moments_are_saved_and_loaded(tmp_path: Path) -> None:
    one, other, batch = latent(), latent(), zoo.batch(EIGHT)
    measure_scale(one, batches())
    aux_state.save(one, tmp_path)
    aux_state.load(other, tmp_path)
    assert float(kv_of(one, batch).detach()) == float(kv_of(other, batch).detach())


def test_codes_have_scales_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"kv_scale.*codes are compared"):
        mixtures.recipe_of(2, *mixtures.Z, "loss.kv_scale=dim")


def test_a_mixture_is_measured_after_fusion() -> None:
    words = mixtures.THREE
    kind = mixtures.objective(words, *mixtures.HEAD, "loss.kv_scale=dim")
    batch = mixtures.batch(words, EIGHT)
    measure_scale(kind, [batch])
    for pair in compared(kind, batch):
        scaled = kind.kv_scale(pair).target[:, 0][pair.kept[:, 0]]
        torch.testing.assert_close(scaled.mean(0), torch.zeros_like(scaled[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close(scaled.std(0, unbiased=False), torch.ones_like(scaled[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "settings", "reason"),
    [
        ("explicit_embedded", "loss.kv_loss_type=cosine loss.kv_scale=layer", "directions are not divided"),
        ("debug", "loss.alpha2_kv=0 loss.kv_scale=dim", "the key/value term is off"),
        (
            "debug",
            "loss.alpha1_codi=0 loss.kv_scale=dim loss.layerwise_std=false",
            "nothing is divided by a standard deviation that it decides on",
        ),
        ("debug", "loss.alpha1_codi=0 loss.kv_scale=dim loss.std_scope=batch", "nothing is divided by a standard"),
    ],
)
def test_settings_without_effect_are_refused(recipe: str, settings: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_recipe(recipe, settings.split())


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("explicit_embedded", "loss.kv_loss_type=cosine loss.kv_scale=dim"),
        ("qwen05b_aug", "loss.kv_scale=dim"),
        ("debug", "loss.alpha1_codi=0 loss.kv_scale=layer loss.std_scope=batch"),
        ("debug", "loss.alpha1_codi=1 loss.kv_scale=dim loss.layerwise_std=false"),
    ],
)
def test_settings_with_an_effect_are_not(recipe: str, settings: str) -> None:
    load_recipe(recipe, settings.split())
