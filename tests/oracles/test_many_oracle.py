"""A mixture's terms, counts and gradients against plain loops, over a list of cases that meets each setting."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import oracle_many as slow
import pytest
import torch
from test_tokens_oracle import marked, samples
from torch import Tensor

import explicit
import mixtures
from compare import plain_attention
from explicit import LLAMA
from kava.data.encode import Encoded
from kava.data.teacher_texts import view
from kava.evaluation.held_out import held_out
from kava.objective.calibration import find_prototypes
from kava.objective.objective import Objective
from kava.objective.records import Step

EPOCH, UPDATE, PROGRESS = 2, 5, 0.4
GAPS = 0.5  # of three teachers' matches: some tokens have none at all


class Case(NamedTuple):
    teachers: str
    settings: str
    student: str = LLAMA


def head(more: str = "") -> str:
    return f"explicit.choose=head {more}"


def routed(router: str, more: str = "", entropy: str = "none") -> str:
    return f"mixture.fusion=learnable mixture.router={router} mixture.entropy={entropy} {more}"


def z(more: str = "") -> str:
    return f"mixture.space=z mixture.z_size=4 {more}"


LAYERS, TOKENS, WARM = "mixture.per_layer=true", "mixture.per_token=true", "mixture.layer_warmup=0.3"
CASES = {
    # fixed weights, every way of choosing and comparing
    "head": Case("large gpt2", head("explicit.gamma_kl=0.3 explicit.attention_weighted=true")),
    "sample": Case("qwen3 large qwen2", "mixture.weights=[0.5,0.25,0.25] explicit.beta_cos=0.1"),
    "full": Case("neox qwen2", "rkv.method=full loss.kv_loss_type=smooth_l1 mixture.layer_map=uniform"),
    "one": Case("large", head("rkv.method=full projector.guard=none mixture.heads=conv")),
    "nobody's": Case("large gpt2", head("mixture.weights=[1,0] rkv.method=crop explicit.lambda_k=0.5")),
    "conv": Case("gpt2 qwen2", "mixture.heads=conv explicit.lambda_v=2 explicit.gamma_kl=0.3 explicit.beta_cos=1"),
    "matched": Case("large gpt2", head("mixture.heads=matched explicit.gamma_kl=0.3 explicit.gamma_ramp=[0.2,0.6]")),
    "warming": Case("large gpt2", "mixture.layer_warmup=0.3 loss.kv_loss_type=l1 explicit.ce_ramp=[0,0.8]"),
    "early": Case("large gpt2", head("mixture.layer_warmup=0.5 rkv.method=uniform")),
    "keys": Case("qwen3 gpt2", head("explicit.parts=k loss.kv_loss_type=mercator rkv.shuffle=time")),
    "values": Case("neox large", f"explicit.parts=v rkv.method=steps loss.layerwise_std=false {WARM} explicit.layers=1-2"),
    "structural": Case("large qwen3", "loss.kv_loss_type=structural explicit.attention_weighted=true rkv.lambda=0"),
    "examples": Case("large large:8", "rkv.shuffle=examples loss.std_scope=batch explicit.lambda_k=2"),
    "whole": Case("large gpt2", "explicit.form=aggregated explicit.aggregation=weighted explicit.beta_cos=0.5"),
    "band": Case("large gpt2", head("projector.guard=band loss.kv_loss_type=cosine")),
    "frozen": Case("large gpt2", head("projector.trainable=false explicit.cka_weight=0.5")),
    "hybrid": Case("qwen2 qwen3", "loss.kv_loss_type=hybrid explicit.cka_weight=1 explicit.cka_layers=0,2"),
    "gpt2": Case("large neox", head("rkv.method=full explicit.lambda_v=0 mixture.layer_map=ratio"), "gpt2"),
    "qwen3": Case("large gpt2", head("loss.kv_loss_type=cosine"), "qwen3"),
    "shared": Case("large large:8", "mixture.share_adapters=true"),
    # similarity
    "similar": Case("large gpt2", "mixture.fusion=similarity mixture.temperature=2 mixture.temperature_step=0.5"),
    "similar-layers": Case("qwen3 gpt2", "mixture.fusion=similarity mixture.per_layer=true mixture.similarity=l2"),
    "similar-centres": Case(
        "large neox", "mixture.fusion=similarity mixture.prototype=kmeans mixture.centres=3 rkv.method=full"
    ),
    "similar-dot": Case("qwen2 gpt2", head("mixture.fusion=similarity mixture.similarity=dot mixture.temperature=9")),
    # routers
    "mlp": Case("large gpt2 qwen3", routed("mlp", "explicit.gamma_kl=0.2", "diverse")),
    "mlp-deep": Case("gpt2 qwen2", routed("mlp", f"mixture.router_layers=3 {LAYERS} mixture.query=embedding")),
    "mlp-tokens": Case("large gpt2", head(routed("mlp", TOKENS, "specialized"))),
    "gate": Case("large gpt2", routed("gate", "mixture.temperature=1.5 mixture.temperature_step=0.1", "specialized")),
    "gate-all": Case("neox gpt2", routed("gate", f"{TOKENS} {LAYERS} rkv.method=full", "diverse")),
    "attention": Case("large qwen3", routed("attention", f"{LAYERS} projector.trainable=false", "diverse")),
    "attention-tokens": Case("large gpt2", routed("attention", f"{TOKENS} mixture.query=embedding"), "gpt2"),
    # codes
    "z": Case("large gpt2", z("mixture.z_variance=2")),
    "z-cosine": Case("neox qwen3", z("mixture.z_loss=cosine rkv.method=full mixture.layer_warmup=0.3")),
    "z-barlow": Case("large gpt2", z("mixture.z_loss=barlow rkv.method=full explicit.layers=1-2")),
    "z-routed": Case("large gpt2", z(routed("mlp", f"{LAYERS} explicit.gamma_kl=0.2", "diverse"))),
    "z-similar": Case("qwen2 gpt2", z("mixture.fusion=similarity rkv.method=uniform rkv.shuffle=time")),
    "z-gpt2": Case("large neox", z("rkv.method=crop mixture.z_loss=mse"), "gpt2"),
}  # fmt: skip
FAST = {"nobody's", "matched", "keys", "similar-layers", "mlp-tokens", "z-barlow"}


@pytest.mark.parametrize("name", marked(CASES, CASES.keys() - FAST))
def test_terms_counts_and_gradients(name: str) -> None:
    """The batch holds a sample without a chain of thought and tokens without a partner; its padding is on the left."""
    case = CASES[name]
    kind, settings = made(case)
    batch = mixtures.batch(case.teachers.split(), side="left", gaps=GAPS)
    matched = torch.stack([batch[f"t{i}.iou"].sum(2) > 0 for i in range(len(case.teachers.split()))])
    assert bool((~matched.any(0) & batch["cot_mask"]).any())
    with ExitStack() as stack:
        loss, terms = slow.loss(
            settings, aux_state(kind), *texts(batch, case), *models(kind, case, stack), EPOCH, True, PROGRESS
        )
        wanted = {name: (total.detach(), count) for name, (total, count, _) in terms.items()}
        gradients = explicit.gradients(loss, kind)
    for name, (total, count) in wanted.items():
        assert abs(float(total)) > 1e-3, name
        assert count > 0, name
    explicit.assert_same(explicit.measure(kind, [batch], Step(UPDATE, EPOCH, PROGRESS)), (wanted, gradients))


HELD_OUT = ["head", "whole", "z", "mlp-tokens"]


@pytest.mark.parametrize("name", marked(HELD_OUT, {"whole", "mlp-tokens", "z"}))
def test_held_out_numbers(name: str) -> None:
    case = CASES[name]
    kind, settings = made(case)
    batch = mixtures.batch(case.teachers.split(), gaps=GAPS)
    names = [f"m{number}" for number in range(len(case.teachers.split()))]
    with torch.no_grad(), ExitStack() as stack:
        wanted = slow.held_out(settings, aux_state(kind), *texts(batch, case), *models(kind, case, stack), names)
    rows = {str(s.id): row for row, s in enumerate(samples(batch))}
    encoded = [Encoded(str(s.id), s.question, s.cot, s.result, s.cue, s.answer, s.eos) for s in samples(batch)]
    found = held_out(kind, encoded, lambda part: mixtures.take(batch, [rows[one.id] for one in part]), 3)
    assert found is not None
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def test_prototypes_are_what_teachers_make_of_questions() -> None:
    case = CASES["similar"]
    kind, _ = made(case)
    batch = mixtures.batch(case.teachers.split())
    find_prototypes(kind, [mixtures.take(batch, [0, 2]), mixtures.take(batch, [1, 3])])
    (_, heard, _), adapters = texts(batch, case), aux_state(kind).adapters
    with torch.no_grad(), ExitStack() as stack:
        for number, lm in enumerate(models(kind, case, stack)[1]):
            asked = [slow.asked(lm, sample) for sample in heard[number]]
            heads, size = mixtures.named(case.teachers.split()[number]).shape.num_heads, len(asked[0][0])
            for layer, share in enumerate(slow.slow.layer_map(3, len(asked[0]), "ratio")):
                points = []
                for one in asked:
                    mixed = sum(weight * one[place] for place, weight in share.items())
                    points.append(torch.cat(slow.adapted(mixed.split(size // heads), adapters[number]["V"][layer])))
                found = kind.mixture.mixture.fusion.prototypes[number, layer, 0]
                torch.testing.assert_close(found, sum(points) / len(points), rtol=1e-9, atol=1e-9)


def made(case: Case) -> tuple[Objective, dict]:
    after = [f"explicit.attention_weighted_after={UPDATE}"] if "attention_weighted=true" in case.settings else []
    words, settings = case.teachers.split(), ["loss.alpha2_kv=1.5", *case.settings.split(), *after]
    kind = mixtures.objective(words, *settings, model=explicit.student(case.student))
    if "matched" in case.settings:
        for number, aligner in enumerate(kind.mixture.mixture.aligners):
            heads = aligner.student.num_heads, aligner.teacher.num_heads
            draw = torch.Generator().manual_seed(number)
            aligner.match(torch.randn(aligner.student.num_layers, *heads, generator=draw, dtype=torch.float64))
    return kind, mixtures.recipe_of(len(words), *settings).to_dict()


def texts(batch: dict[str, Tensor], case: Case) -> tuple[list, list[list], list[list]]:
    """The student's samples, each teacher's, and the matches without padding."""
    heard, ious = [], []
    for number in range(len(case.teachers.split())):
        theirs, iou = view(batch, number), batch[f"t{number}.iou"]
        heard.append(samples(theirs))
        pairs = zip(iou, batch["cot_mask"], theirs["cot_mask"], strict=True)
        ious.append([matrix[mine][:, real].tolist() for matrix, mine, real in pairs])
    return samples(batch), heard, ious


def models(kind: Objective, case: Case, stack: ExitStack) -> tuple[Any, list[Any]]:
    """The student and the teachers as transformers has them."""
    teachers = []
    for word in case.teachers.split():
        model = mixtures.named(word).model
        teachers.append(model.causal_lm if word == "neox" else stack.enter_context(plain_attention(model)))
    return stack.enter_context(plain_attention(kind.model)), teachers


ADAPTERS = "source.mixture.adapters"


def aux_state(kind: Objective) -> slow.Own:
    """The objective's own weights by the oracle's names."""
    weights: dict[str, Any] = kind.aux_state()
    shapes = [kind.mixture.mixture.shapes[number] for number in range(len(kind.mixture.mixture.names))]
    layers = range(kind.model.kv_shape.num_layers)
    found = slow.Own([], weights["source.mixture.reference"].tolist())
    for number, shape in enumerate(shapes):
        plain = slow.overlap(kind.model.kv_shape.num_heads, shape.num_heads)
        which = kind.mixture.mixture.which[number]
        found.adapters.append(
            {part: [adapter(weights, f"{ADAPTERS}.{which}.adapters.{part}.{i}", plain) for i in layers] for part in "KV"}
        )  # fmt: skip
    found.router = {
        name.removeprefix("source.mixture.fusion.router."): weight
        for name, weight in weights.items()
        if name.startswith("source.mixture.fusion.router.")
    }
    found.prototypes = weights.get("source.mixture.fusion.prototypes")
    if "source.mixture.coder.own.0.0.weight" in weights:
        found.encoders = [encoder(weights, f"own.{i}") for i in layers]
        found.others = [[encoder(weights, f"others.{number}.{i}") for i in layers] for number in range(len(shapes))]
    found.tokens.student_weights = weights.get("compare.gather_student.weights")
    found.tokens.teacher_weights = weights.get("compare.gather_teacher.weights")
    return found


def adapter(weights: dict[str, Tensor], name: str, plain: list[list[float]]) -> slow.Adapter:
    size, shares, gain, shift = (weights[f"{name}.{part}"] for part in ("size.weight", "shares", "gain", "shift"))
    trained = shares.requires_grad
    mixed = shares if trained else torch.tensor(plain, dtype=torch.float64)
    if not trained and not torch.allclose(mixed, shares, atol=1e-6):  # heads matched by hand
        mixed, plain = shares, shares.tolist()
    return slow.Adapter(size, mixed, plain, gain, shift)


def encoder(weights: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
    parts = ("0.weight", "0.bias", "1.weight", "1.bias")
    return tuple(weights[f"source.mixture.coder.{name}.{part}"] for part in parts)
