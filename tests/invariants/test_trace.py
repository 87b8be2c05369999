"""The first ten updates of a fixed run: a change that should not move numbers proves that it does not.

After a change that should: KAVA_WRITE_TRACE=1 pytest tests/invariants/test_trace.py, and say why in the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import zoo
from kava.compress import make_compressor
from kava.config import LossConfig
from kava.losses import add
from kava.objectives.latent import LatentObjective

TRACE = Path(__file__).parent.parent / "trace" / "latent.json"
LENGTHS = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 9, 1))


def run() -> list[dict[str, float]]:
    """Loss terms and gradient norm of ten AdamW updates of a tiny Llama on ten random batches."""
    model = zoo.latent_model("llama-gqa")
    objective = LatentObjective(model, LossConfig(), make_compressor("rkv", lambda_=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    lines = []
    for step in range(10):
        terms = objective(zoo.batch(LENGTHS, seed=step)).terms
        optimizer.zero_grad()
        add(terms).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        lines.append({term.name: float(term.value().detach()) for term in terms} | {"grad_norm": float(norm)})
    return lines


def test_ten_updates_are_as_they_were():
    found = run()
    if os.environ.get("KAVA_WRITE_TRACE"):
        TRACE.parent.mkdir(exist_ok=True)
        TRACE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wanted = json.loads(TRACE.read_text(encoding="utf-8"))
    assert len(found) == len(wanted) == 10
    for step, (now, before) in enumerate(zip(found, wanted, strict=True)):
        assert now == pytest.approx(before, rel=1e-4), f"update {step + 1}"
