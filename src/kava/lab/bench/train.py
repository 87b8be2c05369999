"""`kava bench train`: one training step in three orders of passes, checked to give one loss, then timed side by side."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kava.backbone.joined import PARTS
from kava.backbone.kv import join
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.backbone.teacher_forced import cue_states, teacher_forced_pass
from kava.compress import make_compressor
from kava.compress.importance import masked_softmax
from kava.config import LatentConfig, LossConfig
from kava.data.collate import Collator
from kava.infer.generate import run_after, think_with_prefix
from kava.infer.student import pick_device
from kava.lab.bench.reference import ModelSizes, eager_attention
from kava.lab.bench.timing import hardware, ratios, take_turns
from kava.losses import Term, add
from kava.objective.make import latent_objective
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step, StudentView, Targets, TeacherView, Views
from kava.objective.student import LatentSlots
from kava.objective.targets import OwnTeacher, Target
from kava.objective.unpacked import answer_part, read_teacher
from kava.teachers.base import TeacherWants

ANSWER = 3  # tokens of the answer
TOLERANCE = 1e-4
UNLOGGED = Step(log=False)


@dataclass(frozen=True)
class TrainBenchSizes(ModelSizes):
    """What is timed; latents: M, rounds: T."""

    latents: int
    rounds: int


class PccotView(LatentSlots):
    """Student and teacher in the order of passes of PCCoT's official code: a reference for speed, not a way to train.

    Teacher with its attentions kept; pass 0, which reads the question again; T rounds of one pass each; the answer: T + 3
    passes. Every position of teacher and answer is a target (label -100 where it does not count): for batches without
    padding. `queries` of the teacher hold its attention logits [B, H*R, A, N] instead.
    """

    def __call__(self, batch: Batch) -> tuple[StudentView, TeacherView]:
        return self._student(batch), self._teacher(batch)

    def _teacher(self, batch: Batch) -> TeacherView:
        with eager_attention(self.model) as logits:
            text = teacher_forced_pass(self.model, batch, all_layers=True)
        teacher = read_teacher(text, batch, self.outputs)
        question, cot, tail = (batch[part].shape[1] for part in PARTS)
        cot_logits = [
            layer[:, :, question + cot : question + cot + tail, question : question + cot] for layer in logits
        ]
        targets = every_position(text.out.hidden, text.rows.ids, question)
        return replace(teacher, targets=targets, queries=cot_logits)

    def _student(self, batch: Batch) -> StudentView:
        model = self.model
        latents, prefix, known = think_with_prefix(model, batch["question"], batch["question_mask"])
        last = run_after(model, latents, prefix, known)
        known = torch.cat([known, torch.ones_like(latents[..., 0], dtype=torch.bool)], dim=1)
        ids, mask = (part[:, latents.shape[1] :] for part in answer_part(model, batch))
        prefix, place = join(prefix, last.kv(slice(None))), positions(mask, known.sum(1))
        out = model.run(model.embed(ids), place, causal_mask(mask, known), prefix, all_layers=True)
        cue = cue_states(out, 1 + batch["cue_last"])
        return StudentView(every_position(out.hidden, ids, 1), last.keys, last.values, cue)


def every_position(hidden: Tensor, ids: Tensor, first: int) -> Targets:
    """All positions with the next token as their label, or -100 where that is before column `first`."""
    labels = torch.full_like(ids, -100)
    labels[:, first - 1 : -1] = ids[:, first:]
    return Targets(hidden.flatten(0, 1), labels.flatten())


class PccotTeacher(OwnTeacher):
    """The student's own teacher mode, with importance read off the attention logits of `PccotView`."""

    @torch.no_grad()
    def __call__(self, batch: Batch, views: Views, wants: TeacherWants, step: Step) -> Target:
        student, own = views
        assert own is not None
        weight = batch["tail_answer"][:, None, :, None].float()
        importance = []
        for logits, key in zip(own.queries, own.keys, strict=True):
            grouped = logits.unflatten(1, (key.shape[1], -1)).amax(2)
            attention = masked_softmax(grouped.float(), batch["cot_mask"][:, None, None])
            importance.append((attention * weight).sum(2) / weight.sum(2))
        target = super().__call__(batch, (student, own), replace(wants, importance=False), step)
        return replace(target, kv=replace(target.kv, importance=importance))


class PccotObjective(Objective):
    """The same loss; the logits of all positions are made at once."""

    def _ce(self, targets: Targets) -> Tensor:
        return F.cross_entropy(self.model.head(targets.hidden).float(), targets.tokens, reduction="sum")


def random_batch(sizes: ModelSizes, device: torch.device) -> Batch:
    """Random ids without padding: every order of passes then reads the same tokens."""
    batch = Collator(0)(sizes.examples(sizes.batch_size, ANSWER))
    return {name: value.to(device) for name, value in batch.items()}


def objectives(model: LatentModel) -> dict[str, tuple[str, int, Objective]]:
    """Each order of passes: its title in the table, its number of passes, and the objective."""
    rounds = model.latent.num_iterations
    loss, compressor = LossConfig(), make_compressor("rkv", lambda_=0.1)
    packed, unpacked = (latent_objective(model, loss, compressor, packed) for packed in (True, False))
    view, source = PccotView(model, loss), PccotTeacher(model)
    pccot = PccotObjective(view, loss, source, packed.compare, packed.distance, packed.aux_terms)
    return {
        "packed": ("packed (kava's default)", rounds + 1, packed),
        "unpacked": ("unpacked", rounds + 2, unpacked),
        "pccot": ("PCCoT's order of passes", rounds + 3, pccot),
    }


def bench(sizes: TrainBenchSizes, repeats: int, device: str, progress: bool) -> dict[str, Any]:
    """The result as plain data: hardware, sizes, each order's loss terms and times, ratios to packed.

    `differences` names the loss terms that differ; then `equal` is false and nothing is timed.
    """
    target = pick_device(device)
    latent = LatentConfig(num_tokens=sizes.latents, num_iterations=sizes.rounds)
    orders = objectives(sizes.model(latent).to(target))
    batch = random_batch(sizes, target)
    terms = {name: _values(objective(batch, UNLOGGED).terms) for name, (_, _, objective) in orders.items()}
    differences = unequal(terms)
    result = {"hardware": hardware(target), "sizes": asdict(sizes), "repeats": repeats, "terms": terms}
    result |= {"equal": not differences, "differences": differences}
    if differences:
        return result
    steps = {name: partial(_step, objective, batch) for name, (_, _, objective) in orders.items()}
    times = take_turns(steps, repeats, target, progress=progress)
    result["orders"] = {
        name: {"title": title, "passes": passes, "gflop": gflop(steps[name]), **times[name].facts()}
        for name, (title, passes, _) in orders.items()
    }
    return result | ratios(times, "packed")


def _values(terms: list[Term]) -> dict[str, float]:
    """Each term's value, and their sum as `loss`."""
    return {term.name: float(term.value().detach()) for term in terms} | {"loss": float(add(terms).detach())}


def unequal(terms: dict[str, dict[str, float]]) -> list[str]:
    """A line for each loss term that differs from that of the packed order."""
    return [
        f"{name}: {term} is {value:.6f}, packed {terms['packed'][term]:.6f}"
        for name, values in terms.items()
        for term, value in values.items()
        if not abs(value - terms["packed"][term]) <= TOLERANCE * max(1.0, abs(terms["packed"][term]))
    ]


def _step(objective: Objective, batch: Batch) -> None:
    objective.zero_grad(set_to_none=True)
    add(objective(batch, UNLOGGED).terms).backward()


def gflop(step: Callable[[], object]) -> float:
    """1e9 operations in the matrix products of a step, as torch counts them: its work, independent of the machine's load."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # not every kernel is counted
        step()
    return counter.get_total_flops() / 1e9
