"""Before the first update, from a few batches: matched heads, where projectors and adapters start, what guards compare
with, and the prototypes of teachers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kava.align import flatten_heads
from kava.backbone.model import Backbone
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.compress import importance
from kava.fuse import Similar, compute_teacher_prototype
from kava.objective.compare import TO_STUDENT, ByColumn, Sides
from kava.objective.moments import Moments, WithinSample
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step
from kava.objective.targets import MixtureOfTeachers
from kava.teachers.base import TeacherWants
from kava.teachers.mixture import Layers, present_in

WANTS = TeacherWants(rotary=False)
Place = tuple[str, int]  # k or v, and the layer


@torch.no_grad()
def calibrate(objective: Objective, batches: Iterable[Batch], match_start: bool) -> None:
    """Measures the student's entries before training, in evaluation mode: dropout would pass for variety.

    `match_start`: projectors and adapters start with the mean and spread of those entries, dimension by dimension; from
    a random start they would first move the student to a random place.
    """
    was_training = objective.training
    objective.eval()
    if objective.mixture is not None:
        _calibrate_mixture(objective.mixture, objective.model, list(batches), match_start)
    elif isinstance(objective.compare, ByColumn) and objective.compare.settings.direction == TO_STUDENT:
        _calibrate_projector(objective, objective.compare, batches, match_start)
    objective.train(was_training)


def _calibrate_projector(objective: Objective, compare: ByColumn, batches: Iterable[Batch], match_start: bool) -> None:
    """Sets `reference`, how much the student's entries vary within a sample, mean over samples: a projected target that
    varies much less has collapsed."""
    source = objective.source
    assert source is not None
    measured: dict[Place, tuple[WithinSample, Moments, Moments]] = {}
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


def _calibrate_mixture(source: MixtureOfTeachers, model: Backbone, batches: Sequence[Batch], match_start: bool) -> None:
    """Sets the guard's reference as for a projector, from all student layers, and where the adapters start."""
    mixture = source.mixture
    if mixture.codes:
        return
    if mixture.settings.heads == "matched":
        _match_heads(source, model, batches)
    within: dict[Place, WithinSample] = defaultdict(WithinSample)
    own: dict[Place, Moments] = defaultdict(Moments)
    of_teachers: list[dict[Place, Moments]] = [defaultdict(Moments) for _ in mixture.names]
    for batch in batches:
        text = teacher_forced_pass(model, batch)
        for place, flat in _by_place(mixture.unrotated(batch, text.keys("cot")), text.values("cot")):
            own[place].add(flat[batch["cot_mask"]])
            within[place].add(flat, batch["cot_mask"])
        for number, kv in enumerate(source.teachers(batch, WANTS)):
            present = present_in(batch, number)
            for place, flat in _by_place(*mixture.align(number, batch, kv)):
                of_teachers[number][place].add(flat[present])
    if within["k", 0].count:
        spread = torch.stack([within[place].mean for place in sorted(within)])
        mixture.reference.copy_(spread.view_as(mixture.reference))
    if not (match_start and mixture.trained):
        return
    shape = (mixture.student.num_heads, mixture.student.head_size)
    done: set[int] = set()
    for aligner, moments in zip(mixture.aligners, of_teachers, strict=True):
        for place, other in moments.items():
            adapter = aligner.adapter(*place)
            if own[place].count > 1 and other.count > 1 and id(adapter) not in done:
                adapter.rescale(*(numbers.reshape(shape) for numbers in other.onto(own[place])))
            done.add(id(adapter))  # a shared one has been matched by the first teacher that has it


def _match_heads(source: MixtureOfTeachers, model: Backbone, batches: Iterable[Batch]) -> None:
    """Gives every student head the teacher heads whose attention is most like its own."""
    mixture = source.mixture
    similarity: dict[int, Tensor] = {}  # by adapters, which teachers may share
    for batch in batches:
        text = teacher_forced_pass(model, batch)
        own = [
            importance(query, key, batch["tail_answer"], batch["cot_mask"], model.scale, model.cap)
            for query, key in zip(text.queries("tail"), text.keys("cot"), strict=True)
        ]
        for number, kv in enumerate(source.teachers(batch, replace(WANTS, importance=True))):
            assert kv.importance is not None
            which, iou = mixture.which[number], batch[f"t{number}.iou"]
            of_batch = mixture.aligners[number].alike(own, kv.importance, iou, batch["cot_mask"])
            similarity[which] = similarity[which] + of_batch if which in similarity else of_batch
    for which, of_heads in similarity.items():
        mixture.aligners[mixture.which.index(which)].match(of_heads)


@torch.no_grad()
def measure_scale(objective: Objective, batches: Iterable[Batch]) -> int:
    """loss.kv_scale dim: takes the moments of the targets that the recipe keeps; how many of each head there were.

    Last of all, when the targets are those of the first update; in evaluation mode.
    """
    compare, source, scale = objective.compare, objective.source, objective.kv_scale
    if compare is None or source is None or scale is None:
        return 0
    was_training = objective.training
    objective.eval()
    measured: dict[Place, list[Moments]] = {}
    for batch in batches:
        if compare.needs_partners and len(batch["example_id"]) < 2:
            continue
        student, _ = views = objective.view(batch)
        assert student is not None
        target = source(batch, views, objective.teacher_wants(), Step())
        for pair in compare(Sides(batch, student, target, objective.samples(batch))):
            heads = measured.setdefault((pair.kind, pair.layer), [Moments() for _ in range(pair.target.shape[1])])
            for head, moments in enumerate(heads):
                moments.add(pair.target[:, head][pair.kept[:, head]])
    objective.train(was_training)
    return scale.set(measured)


@torch.no_grad()
def find_prototypes(objective: Objective, batches: Iterable[Batch]) -> None:
    """Fusion by similarity: makes each teacher's prototypes from its values of many questions, in the student's shape."""
    source = objective.mixture
    if source is None or not isinstance(source.mixture.fusion, Similar):
        return
    mixture, settings = source.mixture, source.settings
    questions: list[list[Tensor]] = [[] for _ in mixture.names]
    for batch in batches:
        for number, kv in enumerate(source.teachers(batch, replace(WANTS, question=mixture.pooling))):
            assert kv.question is not None
            questions[number].append(mixture.aligners[number].question(kv.question))
    for number, values in enumerate(questions):
        points = torch.cat(values).transpose(0, 1)[:, :, None]  # [L, examples, 1, H*D]
        prototypes = compute_teacher_prototype(points, settings.prototype, None, settings.centres)
        source.mixture.fusion.prototypes[number] = prototypes if prototypes.dim() == 3 else prototypes[:, None]


def _by_place(keys: Layers, values: Layers) -> Iterator[tuple[Place, Tensor]]:
    for kind, layers in (("k", keys), ("v", values)):
        for layer, entries in enumerate(layers):
            yield (kind, layer), flatten_heads(entries)
