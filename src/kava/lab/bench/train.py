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
from kava.infer.student import pick_device
from kava.lab.bench.reference import random_model, run_eager
from kava.lab.bench.timing import hardware, ratio, take_turns
from kava.losses import add, kv_loss
from kava.objective.latent import LatentObjective
from kava.objective.records import Batch, Result, StudentView, Targets, Teacher
from kava.objective.unpacked import read_teacher

CUE, ANSWER = 4, 3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """What is timed. vocabulary: with 12,000 the output head is the share of the model that it is in Llama-3.2-1B."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    kv_heads: int = 4
    vocabulary: int = 12000
    question: int = 64
    cot: int = 60
    latents: int = 24
    rounds: int = 3
    batch_size: int = 8


class PccotOrder(LatentObjective):
    """The same loss in PCCoT's order of passes: a yardstick, not a way to train.

    teacher, attentions kept - pass 0, the question again - T rounds, each a pass - answer, a pass: T + 3 in all. Logits
    at every position of teacher and answer, as the models of transformers give them  [known: PCCoT's official code]
    """

    def forward(self, batch: Batch) -> Result:
        counts = self.counts(batch)
        teacher, logits, ce_teacher = self._teacher(batch)
        student, ce_student = self._student(batch)
        found = {
            "ce_student": ce_student,
            "ce_teacher": ce_teacher,
            "codi": self._codi(student, teacher),
            "kv": self._kv_from(batch, student, teacher, logits),
        }
        return Result([self._term(name, total, counts) for name, total in found.items()], {})

    def _teacher(self, batch: Batch) -> tuple[Teacher, list[Tensor], Tensor]:
        ids, mask = (
            torch.cat([batch[name + end] for name in ("question", "cot", "tail")], dim=1) for end in ("", "_mask")
        )
        out, logits = run_eager(self.model, self.model.embed(ids), positions(mask), causal_mask(mask))
        question, cot = batch["question"].shape[1], batch["cot"].shape[1]
        columns = slice(question, question + cot)
        teacher = read_teacher(out, batch, ids, mask, question, columns, self.wants)
        seen = [layer[:, :, columns.stop :, columns] for layer in logits]
        return teacher, seen, self._ce_everywhere(out.hidden, ids, question)

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
        """Logits of every position, then the labels that count. Without padding only."""
        logits, labels = self.model.head(hidden), ids.clone()
        labels[:, :first] = -100
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")

    def _kv_from(self, batch: Batch, student: StudentView, teacher: Teacher, logits: list[Tensor]) -> Tensor:
        """The KV term with importance read off the attention logits."""
        total = student.targets.hidden.new_zeros(())
        layers = zip(logits, teacher.keys, teacher.values, student.keys, student.values, strict=True)
        weight = batch["tail_answer"][:, None, :, None].float()
        for seen, key, value, latent_key, latent_value in layers:
            with torch.no_grad():
                grouped = seen.unflatten(1, (key.shape[1], -1)).amax(2)
                attention = masked_softmax(grouped.float(), batch["cot_mask"][:, None, None])
                score = (attention * weight).sum(2) / weight.sum(2)
                kept = self.compressor(
                    key, value, batch["cot_mask"], score, latent_key.shape[2], samples=self._samples(batch)
                )
            for mine, target in ((latent_key, kept.keys), (latent_value, kept.values)):
                total = total + kv_loss(mine, target, kept.kept, self.loss.kv_loss_type) / 2
        return total


def random_batch(sizes: Sizes, device: torch.device, seed: int = 0) -> Batch:
    """Random ids, no padding: every order of passes then has the same tokens to do."""
    generator = torch.Generator().manual_seed(seed)
    rows = sizes.batch_size
    batch: Batch = {}
    tail = CUE + ANSWER + 1
    for name, width in (("question", sizes.question), ("cot", sizes.cot), ("tail", tail)):
        batch[name] = torch.randint(0, sizes.vocabulary - 3, (rows, width), generator=generator)
        batch[f"{name}_mask"] = torch.ones(rows, width, dtype=torch.bool)
    column = torch.arange(tail).expand(rows, -1)
    batch["tail_answer"] = (column >= CUE) & (column < tail - 1)
    batch["cot_result"] = torch.zeros_like(batch["cot_mask"])
    batch["cue_last"] = torch.full((rows,), CUE - 1)
    batch["example_id"] = torch.arange(rows)
    return {name: value.to(device) for name, value in batch.items()}


def objectives(model: LatentModel) -> dict[str, tuple[str, int, LatentObjective]]:
    """Each order of passes: what the table calls it, its number of passes, and the objective."""
    rounds = model.latent.num_iterations
    loss, compressor = LossConfig(), make_compressor("rkv", lambda_=0.1)
    return {
        "packed": ("packed (kava's default)", rounds + 1, LatentObjective(model, loss, compressor, packed=True)),
        "unpacked": ("unpacked", rounds + 2, LatentObjective(model, loss, compressor, packed=False)),
        "pccot": ("PCCoT's order of passes", rounds + 3, PccotOrder(model, loss, compressor)),
    }


def bench(sizes: Sizes, repeats: int, device: str = "cpu", progress: bool = False) -> dict[str, Any]:
    """The result as plain data: hardware, sizes, each order's loss terms and times, ratios to packed.

    `equal` false means that the losses differ and nothing was timed.
    """
    where = pick_device(device)
    latent = LatentConfig(num_tokens=sizes.latents, num_iterations=sizes.rounds)
    model = random_model(sizes.layers, sizes.width, sizes.heads, sizes.kv_heads, sizes.vocabulary, latent).to(where)
    batch, kinds = random_batch(sizes, where), objectives(model)
    terms = {}
    for name, (_, _, kind) in kinds.items():
        kind.watch = False
        found = kind(batch).terms
        terms[name] = {term.name: float(term.value().detach()) for term in found} | {"loss": float(add(found).detach())}
    result: dict[str, Any] = {"hardware": hardware(where), "sizes": asdict(sizes), "repeats": repeats, "terms": terms}
    result["equal"] = not unequal(terms)
    if result["equal"]:
        steps = {name: _step(kind, batch) for name, (_, _, kind) in kinds.items()}
        result |= _measured(kinds, steps, repeats, where, progress)
    return result


def unequal(terms: dict[str, dict[str, float]]) -> list[str]:
    """A line for each loss term that is not that of the packed order."""
    return [
        f"{name}: {term} is {value:.6f}, packed {terms['packed'][term]:.6f}"
        for name, found in terms.items()
        for term, value in found.items()
        if not abs(value - terms["packed"][term]) <= TOLERANCE * max(1.0, abs(terms["packed"][term]))
    ]


def _step(kind: LatentObjective, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        kind.zero_grad(set_to_none=True)
        add(kind(batch).terms).backward()

    return step


def _measured(kinds: dict[str, tuple[str, int, LatentObjective]], steps: dict[str, Callable[[], None]],
              repeats: int, device: torch.device, progress: bool) -> dict[str, Any]:  # fmt: skip
    times = take_turns(steps, repeats, device, progress=progress)
    packed = times["packed"]
    return {
        "orders": {
            name: {"title": title, "passes": passes, "gflop": _gflop(steps[name]), **times[name].facts()}
            for name, (title, passes, _) in kinds.items()
        },
        "ratio": {name: ratio(found.wall, packed.wall) for name, found in times.items()},
        "cpu_ratio": {name: ratio(found.cpu, packed.cpu) for name, found in times.items()},
    }


def _gflop(step: Callable[[], None]) -> float:
    """What a step has to do, whatever else the machine does: 1e9 operations in matrix products, as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # not every kernel is counted
        step()
    return counter.get_total_flops() / 1e9
