"""What a student of the explicit line is measured by on examples it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from kava.backbone.reading import read_text
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.losses import cross_entropy
from kava.losses.cosine import CosineMeter
from kava.losses.guard import variation as variation_of
from kava.objectives.pairing import Pairing
from kava.objectives.tokens import TokensObjective
from kava.objectives.unpacked import targets

SHOWN = ("cossim", "cossim_centred", "cossim_mean_predictor", "spread")


@torch.no_grad()
def held_out(
    objective: TokensObjective,
    encoded: Sequence[Encoded],
    collate: Collator,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """ce and ppl of everything behind the question; where there is a KV term also, over all CoT columns and unshuffled,

        cossim, cossim_centred       mean cosine of student and target, raw and after subtracting the target's mean
        cossim_mean_predictor        what giving that mean every time would score raw (centred it scores 0)
        spread                       0 where targets have collapsed into one vector
        target_variation             of trained projections: how much they vary within a sample, over how much the
                                     student's entries did before training; 0 where they have collapsed

    each the mean over compared layers, keys and values; with _kept behind the name where a store has kept some of the
    columns only, which is another measure. None when `stop` said so in between.
    """
    was = objective.training
    objective.eval()
    try:
        order = sorted(encoded, key=len)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        total, count = 0.0, 0
        meters: dict[tuple[str, int], CosineMeter] = {}
        variation, several, suffix = 0.0, 0, ""
        for first in (True, False) if objective.bridge is not None else (True,):
            for rows in batches:
                if stop():
                    return None
                batch = {name: value.to(objective.model.device) for name, value in collate(rows).items()}
                text = read_text(objective.model, batch)
                if first:
                    aim = targets(text.out.hidden, text.ids, text.mask, slice(text.cot.start, text.tail.stop))
                    total += float(cross_entropy(aim.hidden, aim.tokens, objective.model.head))
                    count += len(aim.tokens)
                if objective.bridge is None or objective.teacher is None:
                    continue
                seen = objective.teacher(batch, objective.wants)
                suffix = "" if seen.only is None else "_kept"
                everything, facts = Pairing(objective.pairing.compressor, None), objective.samples(batch)
                for one in objective.bridge.compare(
                    *objective.cot_kv(text), seen, batch["cot_mask"], facts, everything
                ):
                    meter = meters.setdefault((one.part, one.place), CosineMeter())
                    (meter.add_mean if first else meter.add)(one.student, one.target, one.kept)
                    if first and objective.projects:
                        reference = objective.reference[int(one.part == "v"), one.place]
                        variation += float(variation_of(one.target[:, 0], one.kept[:, 0], reference))
                        several += int((one.kept[:, 0].sum(1) > 1).sum())
    finally:
        objective.train(was)
    found = {"ce": total / count, "ppl": math.exp(min(total / count, 700.0))}
    found |= {"target_variation": variation / several} if several else {}
    means = _means([meter.value() for meter in meters.values()])
    return found | {name + suffix: value for name, value in means.items()}


def _means(values: list[dict[str, float | None]]) -> dict[str, float]:
    whole = [{name: one[name] for name in SHOWN} for one in values]
    numbers = [{name: value for name, value in one.items() if value is not None} for one in whole]
    return {
        name: fmean(one[name] for one in numbers if name in one)
        for name in SHOWN
        if any(name in one for one in numbers)
    }
