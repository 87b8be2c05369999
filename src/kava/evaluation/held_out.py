"""What a student of the explicit line is measured by on examples it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from kava.backbone.teacher_forced import TextPass, teacher_forced_pass
from kava.data.encode import Encoded
from kava.losses import cross_entropy
from kava.losses.cosine import CosineMeter
from kava.losses.guard import variation as variation_of
from kava.objective.aux_terms import Seen
from kava.objective.many import ManyObjective, SeenMany
from kava.objective.pairing import Pairing
from kava.objective.tokens import TokensObjective
from kava.objective.unpacked import targets
from kava.shapes import at_least_float32

SHOWN = {  # of a meter -> of this record
    "cossim": "cossim",
    "cossim_centred": "cossim_centred",
    "cossim_mean_predictor": "cossim_mean_predictor",
    "spread": "spread",
    "difference": "kv",
    "mean_predictor": "kv_mean_predictor",
    "unexplained": "kv_unexplained",
}
Meters = dict[tuple[str, int], CosineMeter]


@torch.no_grad()
def held_out(
    objective: TokensObjective,
    encoded: Sequence[Encoded],
    collate: Callable[[Sequence[Encoded]], dict[str, Tensor]],
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[Sequence[Encoded], dict[str, Tensor], SeenMany], None] | None = None,
) -> dict[str, float] | None:
    """ce and ppl of everything behind the question; where there is a KV term also, over all CoT columns and unshuffled,

        cossim, cossim_centred       mean cosine of student and target, raw and after subtracting the target's mean
        cossim_mean_predictor        what giving that mean every time would score raw (centred it scores 0)
        spread                       0 where targets have collapsed into one vector
        kv, kv_mean_predictor        mean squared difference to the target, and what giving its mean would cost
        kv_unexplained               their ratio
        kv_<teacher>                 of a mixture: the same difference to each teacher alone
        target_variation             of trained projections: how much they vary within a sample, over how much the
                                     student's entries did before training; 0 where they have collapsed

    each the mean over compared layers, keys and values; with _kept behind the name where a store has kept some of the
    columns only, which is another measure. None when `stop` said so in between. `note` is shown what a mixture saw.
    """
    was = objective.training
    objective.eval()
    watch, objective.watch = objective.watch, False
    try:
        order = sorted(encoded, key=len)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        sums = _Sums()
        for first in (True, False) if objective.bridge is not None else (True,):
            for rows in batches:
                if stop():
                    return None
                batch = {name: value.to(objective.model.device) for name, value in collate(rows).items()}
                text = teacher_forced_pass(objective.model, batch)
                if first:
                    aim = targets(text.out.hidden, text.ids, text.mask, slice(text.cot.start, text.tail.stop))
                    sums.ce += float(cross_entropy(aim.hidden, aim.tokens, objective.model.head))
                    sums.tokens += len(aim.tokens)
                if objective.bridge is None or objective.teacher is None:
                    continue
                seen = objective.see(batch, text)
                sums.measure(objective, batch, text, seen, first)
                if first and note is not None and isinstance(seen, SeenMany):
                    note(rows, batch, seen)
    finally:
        objective.train(was)
        objective.watch = watch
    return sums.record()


class _Sums:
    """What is added up over the batches."""

    def __init__(self) -> None:
        self.ce, self.tokens = 0.0, 0
        self.meters: Meters = {}
        self.variation, self.several = 0.0, 0
        self.alone: dict[str, list[float]] = {}  # teacher -> squared differences, elements
        self.suffix = ""

    def measure(
        self, objective: TokensObjective, batch: dict[str, Tensor], text: TextPass, seen: Seen, first: bool
    ) -> None:
        """The first time the means are taken, the second time everything is held against them."""
        self.suffix = "" if seen.kv.only is None else "_kept"
        everything, (keys, values) = Pairing(objective.pairing.compressor, None), objective.cot_kv(text)
        for one in objective.pairs(batch, keys, values, seen, everything):
            meter = self.meters.setdefault((one.part, one.place), CosineMeter())
            (meter.add_mean if first else meter.add)(one.student, one.target, one.kept)
            if first and objective.projects:
                reference = objective.reference[int(one.part == "v"), one.place]
                self.variation += float(variation_of(one.target[:, 0], one.kept[:, 0], reference))
                self.several += int((one.kept[:, 0].sum(1) > 1).sum())
        if not first or not isinstance(seen, SeenMany) or not isinstance(objective, ManyObjective):
            return
        found, several = objective.mixture.variation(seen.blend)
        self.variation += found
        self.several += several
        for name, kv, there in zip(objective.mixture.names, seen.blend.each, seen.blend.present, strict=True):
            sums = self.alone.setdefault(name, [0.0, 0.0])
            for one in objective.pairs(batch, keys, values, Seen(kv, there), everything):
                apart = at_least_float32(one.student - one.target).square().sum(-1).masked_fill(~one.kept, 0.0)
                sums[0] += float(apart.sum())
                sums[1] += float(one.kept.sum()) * one.student.shape[-1]

    def record(self) -> dict[str, float]:
        ce = self.ce / self.tokens
        found = {"ce": ce, "ppl": math.exp(min(ce, 700.0))}
        found |= {"target_variation": self.variation / self.several} if self.several else {}
        means = _means([meter.value() for meter in self.meters.values()])
        found |= {name + self.suffix: value for name, value in means.items()}
        return found | {f"kv_{name}": total / count for name, (total, count) in self.alone.items() if count}


def _means(values: list[dict[str, float | None]]) -> dict[str, float]:
    """Over the meters that have a number."""
    known = {name: [number for one in values if (number := one[name]) is not None] for name in SHOWN}
    return {SHOWN[name]: fmean(numbers) for name, numbers in known.items() if numbers}
