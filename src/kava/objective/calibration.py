"""Before the first update, from a few batches: matched heads, where projectors and adapters start, what guards compare
with, and the prototypes of teachers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kava.align import flatten_heads
from kava.align.heads import HeadDimAdapter
from kava.backbone.model import Backbone
from kava.backbone.teacher_forced import teacher_forced_pass
from kava.compress import importance
from kava.fuse import Similar, compute_teacher_prototype
from kava.objective.compare import TO_STUDENT, ByColumn, KVComparison, Sides
from kava.objective.least_squares import Ridge, inputs_of
from kava.objective.moments import Moments, WithinSample
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step
from kava.objective.targets import MixtureOfTeachers
from kava.teachers.base import TeacherWants
from kava.teachers.mixture import Layers, present_in

WANTS = TeacherWants(rotary=False)
Place = tuple[str, int]  # k or v, and the layer
MOMENTS, LEAST_SQUARES = "moments", "least_squares"  # projector.match_start


@torch.no_grad()
def calibrate(objective: Objective, batches: Iterable[Batch], start: str) -> None:
    """Measures the student's entries before training, in evaluation mode: dropout would pass for variety.

    `start` moments: projectors and adapters start with the mean and spread of those entries, dimension by dimension;
    least_squares: with the map that predicts one side of each pair from the other best, on the teacher's side with that
    mean and spread, which a prediction lacks: it would pass for a target that has collapsed. From a random start they would
    first move the student to a random place.
    """
    was_training = objective.training
    objective.eval()
    if objective.mixture is not None:
        _calibrate_mixture(objective.mixture, objective.model, list(batches), start)
    elif isinstance(objective.compare, ByColumn):
        to_student, fitted = objective.compare.settings.direction == TO_STUDENT, start == LEAST_SQUARES
        portions = list(batches) if to_student or fitted else []
        if fitted:
            _fit_projector(objective, objective.compare, portions)
        if to_student:
            _calibrate_projector(objective, objective.compare, portions, start in (MOMENTS, LEAST_SQUARES))
    objective.train(was_training)


def _every_column(objective: Objective, compare: ByColumn, batches: Iterable[Batch]) -> Iterator[KVComparison]:
    """Each column of the batches with itself."""
    source = objective.source
    assert source is not None
    for batch in batches:
        student, _ = views = objective.view(batch)
        assert student is not None
        target = source(batch, views, objective.teacher_wants(), Step())
        every = compare.pairing.all_columns()
        yield from compare(Sides(batch, student, target, objective.samples(batch), pairing=every))


def _fit_projector(objective: Objective, compare: ByColumn, batches: Iterable[Batch]) -> None:
    """Sets the last map of every projector to the ridge regression of the other side on what the map is given."""
    places = [(kind, layer) for layer in range(len(compare.sizes)) for kind in compare.kinds]
    maps = {place: linear for place in places if (linear := compare.last_map(*place)) is not None}
    fits: dict[Place, Ridge] = defaultdict(Ridge)
    with inputs_of(maps) as inputs:
        for pair in _every_column(objective, compare, batches) if maps else ():
            place, kept = (pair.kind, pair.layer), pair.kept[:, 0]
            other = pair.student if compare.settings.direction == TO_STUDENT else pair.target
            fits[place].add(inputs[place][kept], other[:, 0][kept])
    for place, fit in fits.items():
        if fit.count > 1:
            weight, bias = fit.solve()
            maps[place].weight.copy_(weight)
            maps[place].bias.copy_(bias)


def _calibrate_projector(objective: Objective, compare: ByColumn, batches: Iterable[Batch], match_start: bool) -> None:
    """Sets `reference`, how much the student's entries vary within a sample, mean over samples: a projected target that
    varies much less has collapsed."""
    measured: dict[Place, tuple[WithinSample, Moments, Moments]] = {}
    for pair in _every_column(objective, compare, batches):
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


def _calibrate_mixture(source: MixtureOfTeachers, model: Backbone, batches: Sequence[Batch], start: str) -> None:
    """Sets the guard's reference as for a projector, from all student layers, and where the adapters start."""
    mixture = source.mixture
    if mixture.codes:
        return
    if mixture.settings.heads == "matched":
        _match_heads(source, model, batches)
    if start == LEAST_SQUARES and mixture.trained:
        _fit_adapters(source, model, batches)
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
    if not (mixture.trained and start in (MOMENTS, LEAST_SQUARES)):
        return
    shape = (mixture.student.num_heads, mixture.student.head_size)
    done: set[int] = set()
    for aligner, moments in zip(mixture.aligners, of_teachers, strict=True):
        for place, other in moments.items():
            adapter = aligner.adapter(*place)
            if own[place].count > 1 and other.count > 1 and id(adapter) not in done:
                adapter.rescale(*(numbers.reshape(shape) for numbers in other.onto(own[place])))
            done.add(id(adapter))  # a shared one has been matched by the first teacher that has it


def _fit_adapters(source: MixtureOfTeachers, model: Backbone, batches: Iterable[Batch]) -> None:
    """Sets the map and the shift of every adapter to the ridge regression of the student's entries on the teacher's, at the
    tokens that both have: one map for all heads, around each head's own mean. A shared adapter gets one for all teachers."""
    mixture = source.mixture
    rows: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by adapter: [n, H_s, D_t] and [n, H_s, D_s]
    adapters: dict[int, HeadDimAdapter] = {}
    for batch in batches:
        text = teacher_forced_pass(model, batch)
        own = {"k": mixture.unrotated(batch, text.keys("cot")), "v": text.values("cot")}
        for number, kv in enumerate(source.teachers(batch, WANTS)):
            places = [(kind, layer) for kind in "kv" for layer in range(mixture.student.num_layers)]
            of_place = {place: mixture.aligners[number].adapter(*place) for place in places}
            present = present_in(batch, number)
            with inputs_of(of_place) as inputs:
                mixture.align(number, batch, kv)
            for (kind, layer), adapter in of_place.items():
                if (given := inputs.get((kind, layer))) is not None:
                    sides = adapter.mixed(given), own[kind][layer]
                    both = [side.transpose(1, 2)[present].cpu().double() for side in sides]
                    rows[id(adapter)].append((both[0], both[1]))
                    adapters[id(adapter)] = adapter
    for key, parts in rows.items():
        other, wanted = (torch.cat(side) for side in zip(*parts, strict=True))
        if len(other) > 1:
            fit = Ridge()
            fit.add((other - other.mean(0)).flatten(0, 1), (wanted - wanted.mean(0)).flatten(0, 1))
            weight, _ = fit.solve()
            adapters[key].set_map(weight, wanted.mean(0) - other.mean(0) @ weight.T)


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
