"""`kava bench train`: one training step in three orders of passes, checked to give one loss, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kava.backbone.kv import join
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.compress import make_compressor
from kava.compress.importance import masked_softmax
from kava.config import LatentConfig, LossConfig
from kava.data.collate import Collator
from kava.infer.student import pick_device
from kava.lab.bench.reference import run_eager
from kava.lab.bench.sizes import ModelSizes
from kava.lab.bench.timing import hardware, ratios, take_turns
from kava.losses import add, kv_loss
from kava.objective.latent import LatentObjective
from kava.objective.records import Batch, Result, StudentView, Targets, Teacher
from kava.objective.unpacked import read_teacher

ANSWER = 3  # tokens of the answer
TOLERANCE = 1e-4


@dataclass(frozen=True)
class TrainBenchSizes(ModelSizes):
    """What is timed; latents: M, rounds: T."""

    latents: int
    rounds: int


class PccotOrder(LatentObjective):
    """The same loss in the order of passes of PCCoT's official code: a reference for speed, not a way to train.

    Teacher with its attentions kept; pass 0, which reads the question again; T rounds of one pass each; the answer: T + 3
    passes. Logits are made at every position of teacher and answer, as the models of transformers give them.
    """

    def forward(self, batch: Batch) -> Result:
        counts = self.counts(batch)
        teacher, logits, ce_teacher = self._teacher(batch)
        student, ce_student = self._student(batch)
        totals = {
            "ce_student": ce_student,
            "ce_teacher": ce_teacher,
            "codi": self._codi(student, teacher),
            "kv": self._kv_from(batch, student, teacher, logits),
        }
        return Result([self._term(name, total, counts) for name, total in totals.items()], {})

    def _teacher(self, batch: Batch) -> tuple[Teacher, list[Tensor], Tensor]:
        ids, mask = (
            torch.cat([batch[name + end] for name in ("question", "cot", "tail")], dim=1) for end in ("", "_mask")
        )
        out, logits = run_eager(self.model, self.model.embed(ids), positions(mask), causal_mask(mask))
        question, cot = batch["question"].shape[1], batch["cot"].shape[1]
        columns = slice(question, question + cot)
        teacher = read_teacher(out, batch, ids, mask, question, columns, self.wants)
        cot_logits = [layer[:, :, columns.stop :, columns] for layer in logits]
        return teacher, cot_logits, self._ce_everywhere(out.hidden, ids, question)

    def _student(self, batch: Batch) -> tuple[StudentView, Tensor]:
        model, num_latents = self.model, self.model.latent.num_tokens
        slots = model.slots(len(batch["question"]))
        ids = torch.cat([batch["question"], slots], dim=1)
        mask = torch.cat([batch["question_mask"], torch.ones_like(slots, dtype=torch.bool)], dim=1)
        first = model.run(model.embed(ids), positions(mask), causal_mask(mask))
        bot = batch["question"].shape[1]
        prefix, known = first.kv(slice(0, bot + 1)), mask[:, : bot + 1]

        def run(embeds: Tensor) -> Any:
            real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            return model.run(embeds, positions(real, known.sum(1)), causal_mask(real, known), prefix)

        latents = model.think(first.hidden[:, bot:], lambda embeds: run(embeds).hidden)
        last = run(latents)
        known = torch.cat([known, torch.ones_like(slots[:, 1:], dtype=torch.bool)], dim=1)
        ids = torch.cat([torch.full_like(slots[:, :1], model.special.eot), batch["tail"]], dim=1)
        mask = torch.cat([torch.ones_like(slots[:, :1], dtype=torch.bool), batch["tail_mask"]], dim=1)
        out = model.run(
            model.embed(ids),
            positions(mask, known.sum(1)),
            causal_mask(mask, known),
            join(prefix, last.kv(slice(0, num_latents))),
            all_layers=True,
        )
        assert out.layers is not None
        rows = torch.arange(len(ids), device=ids.device)
        cue = torch.stack([layer[rows, 1 + batch["cue_last"]] for layer in out.layers], dim=1)
        nothing = Targets(out.hidden[:0, 0], ids[:0, 0])
        return StudentView(nothing, last.keys, last.values, cue), self._ce_everywhere(out.hidden, ids, 1)

    def _ce_everywhere(self, hidden: Tensor, ids: Tensor, first: int) -> Tensor:
        """Cross-entropy from the logits of every position, labels before `first` ignored; for batches without padding."""
        logits, labels = self.model.head(hidden), ids.clone()
        labels[:, :first] = -100
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")

    def _kv_from(self, batch: Batch, student: StudentView, teacher: Teacher, logits: list[Tensor]) -> Tensor:
        """The KV term with importance read off the attention logits."""
        total = student.targets.hidden.new_zeros(())
        layers = zip(logits, teacher.keys, teacher.values, student.keys, student.values, strict=True)
        weight = batch["tail_answer"][:, None, :, None].float()
        for cot_logits, key, value, latent_key, latent_value in layers:
            with torch.no_grad():
                grouped = cot_logits.unflatten(1, (key.shape[1], -1)).amax(2)
                attention = masked_softmax(grouped.float(), batch["cot_mask"][:, None, None])
                score = (attention * weight).sum(2) / weight.sum(2)
                kept = self.compressor(
                    key, value, batch["cot_mask"], score, latent_key.shape[2], samples=self._samples(batch)
                )
            for latent, target in ((latent_key, kept.keys), (latent_value, kept.values)):
                total = total + kv_loss(latent, target, kept.kept, self.loss.kv_loss_type) / 2
        return total


def random_batch(sizes: ModelSizes, device: torch.device) -> Batch:
    """Random ids without padding: every order of passes then reads the same tokens."""
    batch = Collator(0)(sizes.examples(sizes.batch_size, ANSWER))
    return {name: value.to(device) for name, value in batch.items()}


def objectives(model: LatentModel) -> dict[str, tuple[str, int, LatentObjective]]:
    """Each order of passes: its title in the table, its number of passes, and the objective."""
    rounds = model.latent.num_iterations
    loss, compressor = LossConfig(), make_compressor("rkv", lambda_=0.1)
    return {
        "packed": ("packed (kava's default)", rounds + 1, LatentObjective(model, loss, compressor, packed=True)),
        "unpacked": ("unpacked", rounds + 2, LatentObjective(model, loss, compressor, packed=False)),
        "pccot": ("PCCoT's order of passes", rounds + 3, PccotOrder(model, loss, compressor)),
    }


def bench(sizes: TrainBenchSizes, repeats: int, device: str = "cpu", progress: bool = False) -> dict[str, Any]:
    """The result as plain data: hardware, sizes, each order's loss terms and times, ratios to packed.

    `differences` names the loss terms that differ; then `equal` is false and nothing is timed.
    """
    target = pick_device(device)
    latent = LatentConfig(num_tokens=sizes.latents, num_iterations=sizes.rounds)
    orders = objectives(sizes.model(latent).to(target))
    batch, terms = random_batch(sizes, target), {}
    for name, (_, _, objective) in orders.items():
        objective.watch = False
        losses = objective(batch).terms
        terms[name] = {term.name: float(term.value().detach()) for term in losses}
        terms[name]["loss"] = float(add(losses).detach())
    differences = unequal(terms)
    result = {"hardware": hardware(target), "sizes": asdict(sizes), "repeats": repeats, "terms": terms}
    result |= {"equal": not differences, "differences": differences}
    if differences:
        return result
    steps = {name: _step(objective, batch) for name, (_, _, objective) in orders.items()}
    times = take_turns(steps, repeats, target, progress=progress)
    result["orders"] = {
        name: {"title": title, "passes": passes, "gflop": _gflop(steps[name]), **times[name].facts()}
        for name, (title, passes, _) in orders.items()
    }
    return result | ratios(times, "packed")


def unequal(terms: dict[str, dict[str, float]]) -> list[str]:
    """A line for each loss term that differs from that of the packed order."""
    return [
        f"{name}: {term} is {value:.6f}, packed {terms['packed'][term]:.6f}"
        for name, values in terms.items()
        for term, value in values.items()
        if not abs(value - terms["packed"][term]) <= TOLERANCE * max(1.0, abs(terms["packed"][term]))
    ]


def _step(objective: LatentObjective, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        objective.zero_grad(set_to_none=True)
        add(objective(batch).terms).backward()

    return step


def _gflop(step: Callable[[], None]) -> float:
    """1e9 operations in the matrix products of a step, as torch counts them: its work, independent of the machine's load."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # not every kernel is counted
        step()
    return counter.get_total_flops() / 1e9
