"""`kava bench train`: one training step in several orders of passes, checked to give one loss, then timed side by side.

Beside them the library's plain model reads as many tokens once. With the lengths of real rows (`--lengths`) ours is
computed in pieces of like lengths, as in training, PCCoT's order has its own padding, and the plain model has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kava.backbone.model import LatentModel
from kava.compress import make_compressor
from kava.config import LatentConfig, LossConfig
from kava.data.collate import Collator
from kava.data.cut import cut, row_lengths
from kava.infer.student import pick_device
from kava.lab.bench.pccot import PccotObjective, PccotTeacher, PccotView
from kava.lab.bench.real_lengths import library_step, real_rows, real_tokens
from kava.lab.bench.reference import ModelSizes
from kava.lab.bench.timing import hardware, ratios, take_turns
from kava.losses import Term, add
from kava.objective.make import latent_objective
from kava.objective.objective import Objective
from kava.objective.records import Batch, Step
from kava.progress import track
from kava.training.memory import auto_budget

ANSWER = 3  # tokens of the answer
TOLERANCE = 1e-4
UNLOGGED = Step(log=False)
UNIFORM = "uniform"


@dataclass(frozen=True)
class TrainBenchSizes(ModelSizes):
    """What is timed; latents: M, rounds: T. lengths: uniform (rows of `question` and `cot` tokens), or of a data set."""

    latents: int
    rounds: int
    lengths: str = UNIFORM


@dataclass(frozen=True)
class Way:
    """One order of passes over the batch in pieces. step: forward and backward of one update."""

    title: str
    passes: int
    pieces: int
    step: Callable[[], None]


def a_batch(sizes: TrainBenchSizes, device: torch.device) -> Batch:
    """Random ids: all rows of one length, or of the lengths of a data set."""
    if sizes.lengths == UNIFORM:
        rows = sizes.examples(sizes.batch_size, ANSWER)
    else:
        rows = real_rows(sizes.lengths, sizes.batch_size, sizes.vocabulary)
    return {name: value.to(device) for name, value in Collator(0)(rows).items()}


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
    model = sizes.model(latent).to(target)
    orders, batch = objectives(model), a_batch(sizes, target)
    real = sizes.lengths != UNIFORM
    if real:
        del orders["unpacked"]
    pieces = cut(batch, auto_budget(target)) if real else [batch]
    parts = {name: padded_parts(batch, len(pieces)) if name == "pccot" else pieces for name in orders}
    compared = track(orders.items(), "losses compared", unit="orders", show=progress)
    terms = {name: _values(objective, parts[name]) for name, (_, _, objective) in compared}
    differences = unequal(terms)
    result = {"hardware": hardware(target), "sizes": asdict(sizes), "repeats": repeats, "terms": terms}
    result |= {"equal": not differences, "differences": differences}
    if differences:
        return result
    ways = {
        name: Way(title, passes, len(parts[name]), partial(_step, objective, parts[name]))
        for name, (title, passes, objective) in orders.items()
    }
    if real:
        result |= {"real_tokens": real_tokens(model, batch), "padding": _padding(batch, pieces)}
    ways["library"] = Way("a plain model on as many tokens", 1, len(pieces), library_step(model, batch, len(pieces)))
    counted = track(ways.items(), "operations counted", unit="orders", show=progress)
    work = {name: gflop(way.step) for name, way in counted}  # also warms up
    times = take_turns({name: way.step for name, way in ways.items()}, repeats, target, 0, progress)
    result["orders"] = {
        name: {
            "title": way.title,
            "passes": way.passes,
            "pieces": way.pieces,
            "gflop": work[name],
            **times[name].facts(),
        }
        for name, way in ways.items()
    }
    return result | ratios(times, "packed")


def padded_parts(batch: Batch, count: int) -> list[Batch]:
    """The rows in so many parts, padded as the whole batch is: its work, without its memory."""
    rows = torch.arange(len(batch["example_id"])).tensor_split(count)
    return [{name: value[part[0] : part[-1] + 1] for name, value in batch.items()} for part in rows]


def _padding(batch: Batch, pieces: Sequence[Batch]) -> dict[str, float]:
    """Columns of the joined rows over real tokens: of the batch whole, and in pieces."""
    lengths = [row_lengths(piece) for piece in pieces]
    real = sum(map(sum, lengths))
    whole = len(batch["example_id"]) * max(map(max, lengths))
    return {"whole": whole / real, "pieces": sum(len(rows) * max(rows) for rows in lengths) / real}


def _values(objective: Objective, pieces: Sequence[Batch]) -> dict[str, float]:
    """Each term's value over the pieces, and their sum as `loss`."""
    found: dict[str, Term] = {}
    with torch.no_grad():
        for term in (term for piece in pieces for term in objective(piece, UNLOGGED).terms):
            before = found.get(term.name, Term(term.name, torch.zeros_like(term.total), 0.0, term.weight))
            found[term.name] = Term(term.name, before.total + term.total, before.count + term.count, term.weight)
    terms = list(found.values())
    return {term.name: float(term.value()) for term in terms} | {"loss": float(add(terms))}


def unequal(terms: dict[str, dict[str, float]]) -> list[str]:
    """A line for each loss term that differs from that of the packed order."""
    return [
        f"{name}: {term} is {value:.6f}, packed {terms['packed'][term]:.6f}"
        for name, values in terms.items()
        for term, value in values.items()
        if not abs(value - terms["packed"][term]) <= TOLERANCE * max(1.0, abs(terms["packed"][term]))
    ]


def _step(objective: Objective, pieces: Sequence[Batch]) -> None:
    objective.zero_grad(set_to_none=True)
    each = [objective.counts(piece, UNLOGGED) for piece in pieces]
    counts = {name: sum(part[name] for part in each) for name in each[0]}
    for piece, own in zip(pieces, each, strict=True):
        add(objective(piece, UNLOGGED, own).terms, counts).backward()


def gflop(step: Callable[[], object]) -> float:
    """1e9 operations in the matrix products of a step, as torch counts them: its work, independent of the machine's load."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # not every kernel is counted
        step()
    return counter.get_total_flops() / 1e9
