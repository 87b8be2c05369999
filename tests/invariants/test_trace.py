"""Ten updates of fixed runs on every line: a change that should not move numbers proves that it does not.

After a change that should: KAVA_WRITE_TRACE=1 pytest tests/invariants/test_trace.py, and say why in the commit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import explicit
import mixtures
import zoo
from kava.compress import make_compressor
from kava.config import LossConfig, load_recipe
from kava.losses import add
from kava.objective.make import latent_objective, make_objective
from kava.objective.records import Step

FOLDER = Path(__file__).parent.parent / "trace"
LENGTHS = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 9, 1))
EVERY_TERM = ("loss.alpha1_codi=2", "explicit.cka_weight=0.5", "explicit.beta_cos=0.3", "explicit.gamma_kl=0.2")


def latent_own_teacher() -> Any:
    return latent_objective(zoo.latent_model("llama-gqa"), LossConfig(), make_compressor("rkv", lambda_=0.1))


def explicit_per_layer() -> Any:
    student = explicit.fresh_student("llama-gqa")
    taught_by = explicit.teacher("llama-gqa", "large")
    settings = (*explicit.UP, *EVERY_TERM, "explicit.ce_ramp=[0,0.5]", "explicit.gamma_ramp=[0.2,0.8]")
    return explicit.objective(student, taught_by, *settings)


def explicit_aggregated() -> Any:
    student = explicit.fresh_student("llama-gqa")
    taught_by = explicit.teacher("llama-gqa", "large")
    settings = (*explicit.WHOLE, *explicit.DOWN, "explicit.aggregation=weighted", "projector.guard=variance")
    return explicit.objective(student, taught_by, *settings, "loss.alpha1_codi=2")


def explicit_mixture() -> Any:
    settings = (*mixtures.HEAD, *mixtures.ROUTED, "mixture.layer_warmup=0.3", "explicit.beta_cos=0.3")
    return mixtures.objective(mixtures.THREE, *settings, model=explicit.fresh_student("llama-gqa"))


def explicit_codes() -> Any:
    return mixtures.objective(mixtures.THREE, *mixtures.Z, model=explicit.fresh_student("llama-gqa"))


def latent_mixture() -> Any:
    names = ", ".join(f"{{name: m{number}, model: x{number}}}" for number in range(3))
    settings = [f"mixture.teachers=[{names}]", "mixture.fusion=learnable", "mixture.query=embedding"]
    recipe = load_recipe(
        "debug", [*settings, "mixture.entropy=diverse", "latent.num_tokens=4", "latent.num_iterations=3"]
    )
    model, teachers = zoo.latent_model("llama-gqa"), mixtures.company(mixtures.THREE)
    torch.manual_seed(3)
    made = make_objective(recipe, model, teachers).double().eval()
    mixtures.disturb(made)
    return made


RUNS: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        latent_own_teacher,
        latent_mixture,
        explicit_per_layer,
        explicit_aggregated,
        explicit_mixture,
        explicit_codes,
    )
}


def run(name: str) -> list[dict[str, float]]:
    """Loss terms, counts and gradient norm of ten AdamW updates in float64 on ten random batches."""
    mixtures.company(mixtures.THREE)  # made once and kept: what is drawn below must not depend on who made them first
    objective = RUNS[name]()
    trained = objective.trained().values()
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    several = "mixture" in name or "codes" in name
    lines = []
    for step in range(10):
        batch = mixtures.batch(mixtures.THREE, LENGTHS, seed=step) if several else zoo.batch(LENGTHS, seed=step)
        terms = objective(batch, Step(update=step, epoch=step // 5, progress=step / 10)).terms
        optimizer.zero_grad()
        add(terms).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 2.0)
        optimizer.step()
        line = {term.name: float(term.value().detach()) for term in terms}
        line |= {f"count_{term.name}": float(term.count) for term in terms}
        lines.append(line | {"grad_norm": float(norm)})
    return lines


@pytest.mark.parametrize("name", RUNS)
def test_ten_updates_are_as_they_were(name: str):
    trace, measured = FOLDER / f"{name}.json", run(name)
    if os.environ.get("KAVA_WRITE_TRACE"):
        trace.parent.mkdir(exist_ok=True)
        trace.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(trace.read_text(encoding="utf-8"))
    assert len(measured) == len(stored) == 10
    for step, (now, before) in enumerate(zip(measured, stored, strict=True)):
        assert now == pytest.approx(before, rel=1e-6), f"update {step + 1}"
