"""Held-out measures of a student of the explicit line."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor

from kava.data.encode import Encoded
from kava.losses import cross_entropy
from kava.losses.cosine import CosineMeter
from kava.losses.guard import variation as variation_of
from kava.objective.compare import KVComparison, Sides
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step, StudentView
from kava.objective.targets import Target
from kava.progress import progress
from kava.shapes import at_least_float32

Key = TypeVar("Key")

# number of a CosineMeter -> its name here
REPORTED = {name: name for name in ("cossim", "cossim_centred", "cossim_mean_predictor", "spread")}
REPORTED |= {"difference": "kv", "mean_predictor": "kv_mean_predictor", "unexplained": "kv_unexplained"}
REPORTED |= {"unexplained_by_dim": "kv_unexplained_by_dim"}


@torch.no_grad()
def held_out(
    objective: Objective,
    encoded: Sequence[Encoded],
    collate: Callable[[Sequence[Encoded]], dict[str, Tensor]],
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[Sequence[Encoded], Target], None] | None = None,
    step: Step | None = None,
) -> dict[str, float] | None:
    """ce and ppl of everything after the question; where there is a KV term also, over all CoT columns and unshuffled,

        cossim, cossim_centred       mean cosine of student and target, raw and after subtracting the target's mean
        cossim_mean_predictor        what giving that mean every time would score raw (centred it scores 0)
        spread                       0 where targets have collapsed into one vector
        kv, kv_mean_predictor        mean squared difference to the target, and what giving its mean would cost
        kv_unexplained               their ratio
        kv_unexplained_by_dim        the mean of this ratio of each dimension: the same measure for every loss.kv_scale
        kv_scaled                    with loss.kv_scale dim: mean squared difference on the scale of the run
        kv_<teacher>                 of a mixture: the same difference to each teacher alone
        target_variation             of trained projections: how much they vary within a sample, over how much the
                                     student's entries did before training; 0 where they have collapsed

    each the mean over compared layers, keys and values; with the suffix _kept where a store has kept some of the columns
    only, which is another measure. None when `stop` said so in between. `note` gets every target of a mixture.
    """
    was_training = objective.training
    objective.eval()
    step = replace(step or Step(), log=False)
    try:
        order = sorted(encoded, key=len)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        sums = _Sums()
        passes = (True, False) if objective.compare is not None else (True,)
        with progress("held-out measures", len(batches) * len(passes), "batches") as meter:
            for first, rows in product(passes, batches):
                if stop():
                    return None
                batch = {name: value.to(objective.model.device) for name, value in collate(rows).items()}
                student, _ = views = objective.view(batch)
                assert student is not None
                meter.advance()
                if first:
                    aim = student.targets
                    sums.ce += float(cross_entropy(aim.hidden, aim.tokens, objective.model.output_head()))
                    sums.tokens += len(aim.tokens)
                if objective.compare is None or objective.source is None:
                    continue
                target = objective.source(batch, views, objective.teacher_wants(step), step)
                sums.measure(objective, batch, student, target, first)
                if first and note is not None and target.blend is not None:
                    note(rows, target)
    finally:
        objective.train(was_training)
    return sums.record()


class _Sums:
    """What is added up over the batches."""

    def __init__(self) -> None:
        self.ce, self.tokens = 0.0, 0
        self.meters: dict[tuple[str, int], CosineMeter] = {}  # by kind and layer
        self.variation, self.several = 0.0, 0
        self.scaled: dict[tuple[str, int], list[float]] = {}  # squared differences, elements
        self.alone: dict[str, list[float]] = {}  # teacher -> squared differences, elements
        self.suffix = ""

    def measure(self, objective: Objective, batch: Batch, student: StudentView, target: Target, first: bool) -> None:
        """The first pass over the data takes the means, the second one measures against them."""
        compare = objective.compare
        assert compare is not None
        self.suffix = "" if target.kv.only is None else "_kept"

        def pairs(entries: Target) -> Iterator[KVComparison]:
            every = compare.pairing.all_columns()
            return compare(Sides(batch, student, entries, objective.samples(batch), pairing=every))

        projected = compare.target_is_trained and objective.mixture is None
        for pair in pairs(target):
            meter = self.meters.setdefault((pair.kind, pair.layer), CosineMeter())
            (meter.add_mean if first else meter.add)(pair.student, pair.target, pair.kept)
            if first and objective.kv_scale is not None:
                _add(self.scaled, (pair.kind, pair.layer), objective.kv_scale(pair))
            if first and projected:
                mask = pair.kept[:, 0]
                self.variation += float(variation_of(pair.target[:, 0], mask, compare.reference_of(pair)))
                self.several += int((mask.sum(1) > 1).sum())
        if not first or target.blend is None or objective.mixture is None:
            return
        mixture, blend = objective.mixture.mixture, target.blend
        variation, several = mixture.variation(blend)
        self.variation += variation
        self.several += several
        for name, kv, present in zip(mixture.names, blend.each, blend.present, strict=True):
            for pair in pairs(Target(kv, present)):
                _add(self.alone, name, pair)

    def record(self) -> dict[str, float]:
        ce = self.ce / self.tokens
        numbers = {"ce": ce, "ppl": math.exp(min(ce, 700.0))}
        numbers |= {"target_variation": self.variation / self.several} if self.several else {}
        values = [meter.value() for meter in self.meters.values()]
        for name, reported in REPORTED.items():
            if known := [number for value in values if (number := value[name]) is not None]:
                numbers[reported + self.suffix] = fmean(known)
        if scaled := [total / count for total, count in self.scaled.values() if count]:
            numbers["kv_scaled" + self.suffix] = fmean(scaled)
        return numbers | {f"kv_{name}": total / count for name, (total, count) in self.alone.items() if count}


def _add(sums: dict[Key, list[float]], key: Key, pair: KVComparison) -> None:
    """Adds squared differences and elements to those of the key."""
    sums.setdefault(key, [0.0, 0.0])
    apart = at_least_float32(pair.student - pair.target).square().sum(-1).masked_fill(~pair.kept, 0.0)
    sums[key][0] += float(apart.sum())
    sums[key][1] += float(pair.kept.sum()) * pair.student.shape[-1]
