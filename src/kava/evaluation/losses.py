"""The loss terms of held-out items, measured alike for every student, whatever it was trained with.

    ce_student, ce_teacher   sum over targets / number of targets, as in training;  ppl = exp(ce_student)
    kv_<compressor>          (latent - entry)^2 / the teacher's variance per sample and layer, mean over all compared

Entries are what the compressor keeps of the teacher's cache, keys as cached; the best constant number is about 1 away
from them. As many are kept as the student has latents, so compare students of one M.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from kava.backbone.model import LatentModel
from kava.compress import make_compressor
from kava.config import LossConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder
from kava.data.progress import progress_bar
from kava.errors import DataError
from kava.evaluation.eval_sets import Asked, cot_type_of
from kava.evaluation.held_out import held_out
from kava.infer.student import Student
from kava.losses import Term
from kava.objective.latent import LatentObjective
from kava.objective.records import Batch, Result
from kava.objective.tokens import TokensObjective
from kava.objective.unpacked import unpacked

COMPRESSORS = ("full", "crop", "rkv", "steps", "uniform")


class Measured(LatentObjective):
    """CE of the student; with `teacher` also CE of the teacher and the KV distance to every compressor's targets."""

    def __init__(self, model: LatentModel, teacher: bool):
        kv = teacher and model.latent.num_tokens > 0
        loss = LossConfig(
            alpha1_codi=0,
            alpha2_kv=float(kv),
            teacher_ce=float(teacher),
            kv_loss_type="mse",
            layerwise_std=True,
            std_scope="sample",
        )
        super().__init__(model, loss, make_compressor(COMPRESSORS[0]))
        self.each = {name: make_compressor(name) for name in COMPRESSORS} if kv else {}

    def forward(self, batch: Batch) -> Result:
        teacher, student = unpacked(self.model, batch, self.wants)
        assert student is not None
        counts = self.counts(batch)
        terms = [self._term("ce_student", self._ce(student.targets), counts)]
        if teacher is not None:
            terms.append(self._term("ce_teacher", self._ce(teacher.targets), counts))
            for name, compressor in self.each.items():
                self.compressor = compressor
                terms.append(Term(f"kv_{name}", self._kv(batch, student, teacher), self.counts(batch)["kv"]))
        return Result(terms, {})


@torch.inference_mode()
def held_out_losses(student: Student, asked: Asked, batch_size: int, progress: bool = False) -> dict[str, Any]:
    """losses: name -> mean;  losses_items: name -> how many items it was measured on, if any.

    Only items with a chain of thought have a teacher's term, and only those with step results have kv_steps.
    """
    student.model.eval()
    if student.recipe.explicit.enabled:
        return _explicit_losses(student, asked, batch_size)
    recipe = student.recipe.dataset
    encoder = Encoder(student.tokenizer, recipe.drop_last_step, cot_type_of(asked.name, recipe.cot_type))
    encoded = encoder.encode_batch(asked.examples)
    _check_positions(student.model, encoded)
    collate = Collator(student.tokenizer.pad_token_id)
    measure = {teacher: Measured(student.model, teacher) for teacher in (True, False)}
    total: defaultdict[str, float] = defaultdict(float)
    count: defaultdict[str, float] = defaultdict(float)
    for batch, teacher in progress_bar(_batches(encoded, batch_size), "held-out losses", progress):
        rows = {name: value.to(student.model.device) for name, value in collate(batch).items()}
        for term in measure[teacher](rows).terms:
            total[term.name] += float(term.total)
            count[term.name] += term.count
    losses = {name: total[name] / count[name] for name in total if count[name]}
    with_cot, with_result = sum(bool(e.cot) for e in encoded), sum(any(e.result) for e in encoded)
    items = {"ce_student": len(encoded), "kv_steps": with_result}
    return {
        "losses": {**losses, "ppl": math.exp(losses["ce_student"])},
        "losses_items": {name: items.get(name, with_cot) for name in losses},
    }


def _explicit_losses(student: Student, asked: Asked, batch_size: int) -> dict[str, Any]:
    """Cross-entropy of steps, cue and answer; the teacher is not at hand here, training has measured the rest."""
    recipe = student.recipe
    encoder = Encoder(
        student.tokenizer, recipe.dataset.drop_last_step, cot_type_of(asked.name, recipe.dataset.cot_type)
    )
    encoded = encoder.encode_batch(asked.examples)
    _check_positions(student.model, encoded)
    objective = TokensObjective(student.model, recipe, None)
    found = held_out(objective, encoded, Collator(student.tokenizer.pad_token_id), batch_size)
    assert found is not None  # nobody asked it to stop
    return {"losses": {"ce_student": found["ce"], "ppl": found["ppl"]}, "losses_items": {"ce_student": len(encoded)}}


def _batches(encoded: Sequence[Encoded], size: int) -> list[tuple[list[Encoded], bool]]:
    """Like lengths together; items with and without a chain of thought apart, and which of the two."""
    found = []
    for teacher in (True, False):
        rows = sorted((e for e in encoded if bool(e.cot) == teacher), key=len)
        found += [(rows[start : start + size], teacher) for start in range(0, len(rows), size)]
    return found


def _check_positions(model: LatentModel, encoded: Sequence[Encoded]) -> None:
    most, latents = model.max_positions, model.latent.num_tokens + 2
    for e in encoded:
        if most is not None and len(e) + max(0, latents - len(e.cot)) > most:
            raise DataError(
                f"{e.id} needs {len(e) + max(0, latents - len(e.cot))} positions, the model has {most}",
                "leave --losses out, or the item",
            )
