"""Before the first update, from a few batches: where projectors and adapters start, what guards compare with."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kava.objective.compare import TO_STUDENT, ByColumn, Sides
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step
from kava.teachers import mixture_calibration
from kava.teachers.moments import Moments, WithinSample


@torch.no_grad()
def calibrate(objective: Objective, batches: Iterable[Batch], match_start: bool) -> None:
    """Measures the student's entries before training, in evaluation mode: dropout would pass for variety.

    `match_start`: projectors and adapters start with the mean and spread of those entries; from a random start they
    would first move the student to a random place.
    """
    was_training = objective.training
    objective.eval()
    source = objective.mixture
    if source is not None:
        match = match_start and source.mixture.trained
        mixture_calibration.calibrate_mixture(source.mixture, objective.model, source.teachers, list(batches), match)
    elif isinstance(objective.compare, ByColumn) and objective.compare.settings.direction == TO_STUDENT:
        _calibrate_projector(objective, objective.compare, batches, match_start)
    objective.train(was_training)


def _calibrate_projector(objective: Objective, compare: ByColumn, batches: Iterable[Batch], match_start: bool) -> None:
    """Sets `reference`, how much the student's entries vary within a sample, mean over samples: a projected target that
    varies much less has collapsed."""
    source = objective.source
    assert source is not None
    measured: dict[tuple[str, int], tuple[WithinSample, Moments, Moments]] = {}
    for batch in batches:
        student, _ = views = objective.view(batch)
        assert student is not None
        target = source(batch, views, objective.teacher_wants(), Step())
        every = compare.pairing.all_columns()
        for pair in compare(Sides(batch, student, target, objective.samples(batch), pairing=every)):
            place = pair.kind, pair.layer
            within, own, projected = measured.setdefault(place, (WithinSample(), Moments(), Moments()))
            within.add(pair.student[:, 0], pair.kept[:, 0])
            own.add(pair.student[pair.kept])
            projected.add(pair.target[pair.kept])
    for (kind, layer), (within, own, projected) in measured.items():
        projector = compare.projector_at(layer)
        if match_start and projector is not None and own.count > 1:
            projector.rescale(kind, *projected.onto(own))
        if compare.target_is_trained and within.count:
            compare.reference[int(kind == "v"), layer] = within.mean.to(compare.reference)


def find_prototypes(objective: Objective, batches: Iterable[Batch]) -> None:
    """Fusion by similarity: the prototypes of each teacher, from training examples."""
    source = objective.mixture
    if source is not None:
        mixture_calibration.find_prototypes(source.mixture, source.teachers, batches)
