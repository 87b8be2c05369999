"""The loss terms of held-out items, measured alike for every student, whatever it was trained with.

    ce_student, ce_teacher   sum over targets / number of targets, as in training;  ppl = exp(ce_student)
    kv_<compressor>          (latent - entry)^2 / the teacher's variance per sample and layer, mean over all compared
    kv_by_dim_<compressor>   (latent - entry)^2 / (entry - mean)^2, sums over sums in each dimension, mean over all of them

Entries are what the compressor keeps of the teacher's cache, keys as cached; the best constant number is about 1 away
from them. As many are kept as the student has latents, so compare students of one M.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from kava.backbone.model import LatentModel
from kava.compress import Samples, make_compressor
from kava.config import LossConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder
from kava.errors import DataError
from kava.evaluation.eval_sets import EvalSet, cot_type_of
from kava.evaluation.held_out import held_out
from kava.infer.student import Student
from kava.losses import Term, cross_entropy
from kava.losses.unexplained import UnexplainedByDim
from kava.objective.compare import BySlot, Sides
from kava.objective.distances import ByNumber
from kava.objective.make import make_objective
from kava.objective.records import Batch, PassOutputs, Step
from kava.objective.student import LatentSlots
from kava.objective.targets import OwnTeacher
from kava.progress import track
from kava.teachers.base import TeacherWants

COMPRESSORS = ("full", "crop", "rkv", "steps", "uniform")
LOSS = LossConfig(alpha1_codi=0)
DISTANCE = ByNumber("mse", layerwise_std=True, std_scope="sample")


Meters = dict[str, dict[tuple[str, int], UnexplainedByDim]]  # by compressor, then by part and layer


def measured_terms(model: LatentModel, batch: Batch, teacher: bool, meters: Meters | None = None) -> list[Term]:
    """CE of the student; with `teacher` also CE of the teacher mode and the KV distance to every compressor's targets.

    What is compared is added to `meters`.
    """
    kv = teacher and model.latent.num_tokens > 0
    view = LatentSlots(model, LOSS, packed=False)
    view.outputs = PassOutputs(teacher=teacher, student=True, kv=kv, codi=False)
    student, own = view(batch)
    assert student is not None
    counts, head = view.counts(batch), model.output_head()
    read = {"ce_student": student.targets} | ({} if own is None else {"ce_teacher": own.targets})
    terms = [Term(name, cross_entropy(of.hidden, of.tokens, head), counts[name]) for name, of in read.items()]
    if kv and own is not None:
        target = OwnTeacher(model)(batch, (student, own), TeacherWants(importance=True), Step())
        samples = Samples(batch["example_id"], batch["cot_result"])
        for name in COMPRESSORS:
            compare = BySlot(make_compressor(name), model.kv_shape, model.latent.num_tokens)
            compared = list(compare(Sides(batch, student, target, samples)))
            total = torch.stack([DISTANCE(pair) / 2 for pair in compared]).sum()
            if meters is not None:
                for pair in compared:
                    meter = meters.setdefault(name, {}).setdefault((pair.kind, pair.layer), UnexplainedByDim())
                    meter.add(pair.student, pair.target, pair.kept)
            pairs = compare.pair_counts(target.mask, samples)
            count = sum(DISTANCE.count(pairs, *size) for size in compare.sizes)
            terms.append(Term(f"kv_{name}", total, count))
    return terms


@torch.inference_mode()
def held_out_losses(student: Student, asked: EvalSet, batch_size: int, progress: bool = False) -> dict[str, Any]:
    """losses: name -> mean;  losses_items: name -> how many items it was measured on, if any.

    Only items with a chain of thought have a teacher's term, and only those with step results have kv_steps.
    """
    model, recipe = student.model.eval(), student.recipe
    kind = cot_type_of(asked.name, recipe.dataset.cot_type)
    dataset = recipe.changed("dataset", cot_type=kind).dataset
    encoded = Encoder.of(student.tokenizer, dataset).encode_batch(asked.examples)
    encoded, every = [row for row in encoded if _fits(row, model)], len(encoded)
    if not encoded:
        problem = f"none of {every} items fits into the model's {model.max_positions} positions"
        raise DataError(problem, "leave --losses out, or the items")
    left_out = {"losses_too_long": every - len(encoded)} if len(encoded) < every else {}
    collate = Collator(student.tokenizer.pad_token_id)
    items = {"ce_student": len(encoded)}
    if recipe.explicit.enabled:  # without the teacher, whose terms training has measured
        numbers = held_out(make_objective(recipe, model), encoded, collate, batch_size)
        assert numbers is not None  # only `stop` ends it early
        return {"losses": {"ce_student": numbers["ce"], "ppl": numbers["ppl"]}, "losses_items": items, **left_out}
    total: defaultdict[str, float] = defaultdict(float)
    count: defaultdict[str, float] = defaultdict(float)
    meters: Meters = {}
    for batch, teacher in track(_batches(encoded, batch_size), "held-out losses", unit="batches", show=progress):
        rows = {name: value.to(model.device) for name, value in collate(batch).items()}
        for term in measured_terms(model, rows, teacher, meters):
            total[term.name] += float(term.total)
            count[term.name] += term.count
    losses = {name: total[name] / count[name] for name in total if count[name]}
    for name, of_name in meters.items():
        if shares := [share for meter in of_name.values() if (share := meter.value()) is not None]:
            losses[f"kv_by_dim_{name}"] = fmean(shares)
    items["kv_steps"] = items["kv_by_dim_steps"] = sum(any(e.result) for e in encoded)
    with_cot = sum(bool(e.cot) for e in encoded)
    losses_items = {name: items.get(name, with_cot) for name in losses}
    return {"losses": {**losses, "ppl": math.exp(losses["ce_student"])}, "losses_items": losses_items, **left_out}


def _fits(row: Encoded, model: LatentModel) -> bool:
    positions = len(row) + max(0, model.latent.num_tokens + 2 - len(row.cot))
    return model.max_positions is None or positions <= model.max_positions


def _batches(encoded: Sequence[Encoded], size: int) -> list[tuple[list[Encoded], bool]]:
    """Like lengths together; items with and without a chain of thought apart, and which of the two."""
    batches = []
    for teacher in (True, False):
        rows = sorted((e for e in encoded if bool(e.cot) == teacher), key=len)
        batches += [(rows[start : start + size], teacher) for start in range(0, len(rows), size)]
    return batches
