"""What surrounds the explicit line's loss: held-out numbers, what is saved, and training on when memory runs out."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import zoo
from compare import take
from explicit import (
    EIGHT,
    HEAD,
    LLAMA,
    SHAPES,
    WHOLE,
    comparisons,
    fresh_student,
    longer,
    make,
    measure,
    objective,
    recipe_of,
    student,
    teacher,
    views,
)
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.errors import CheckpointError, RunError
from kava.evaluation.held_out import held_out
from kava.objective.calibration import calibrate, measure_scale
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.training import aux_state as aux_state
from kava.training.arguments import training_arguments
from kava.training.interrupt import Interrupt
from kava.training.memory import pieces_of
from kava.training.trainer import KavaTrainer, Validation

every_shape = pytest.mark.parametrize("shape", SHAPES)


# -- held out --------------------------------------------------------------------------------------------------------


def encoded(lengths: tuple = EIGHT, seed: int = 0) -> list[Encoded]:
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(8, 50) for _ in range(count)]

    return [
        Encoded(f"e{i}", ids(q), ids(c), [False] * c, [51, 52, 53], ids(a), 1) for i, (q, c, a) in enumerate(lengths)
    ]


def shown(
    kind: Objective,
    batch_size: int = 4,
    side: str = "right",
    rows: list[Encoded] | None = None,
    step: Step | None = None,
) -> dict:
    found = held_out(kind, rows or encoded(), Collator(7, side), batch_size, step=step)
    assert found is not None
    return found


@pytest.mark.parametrize("shape", longer(SHAPES.keys() - {"head", "whole-down"}))
def test_held_out_numbers_are_those_of_the_examples_alone(shape: str) -> None:
    kind = make(shape, "rkv.shuffle=time" if shape != "structural" else "rkv.method=random")
    kind.train()
    state = torch.get_rng_state()
    first = shown(kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert kind.training
    assert kind.model.backbone.training
    cosines = {"cossim", "cossim_centred", "cossim_mean_predictor", "spread"}
    differences = {"kv", "kv_mean_predictor", "kv_unexplained", "kv_unexplained_by_dim"}
    assert first.keys() == {"ce", "ppl", *cosines, *differences} | ({"target_variation"} if "down" in shape else set())
    assert shown(kind) == first
    late = Step(update=10_000, epoch=3)  # neither draws nor weights matter
    for batch_size, side in ((1, "right"), (3, "left")):
        for name, value in shown(kind, batch_size, side, step=late).items():
            assert value == pytest.approx(first[name], rel=1e-9, abs=1e-9), (name, batch_size, side)


def test_held_out_examples_are_measured_on_the_scale_of_the_run_too() -> None:
    """loss.kv_scale dim: squared differences over all columns, mean over parts and layers; nothing without it."""
    rows = encoded()
    kind = make("head", "loss.kv_scale=dim")
    measure_scale(kind, [zoo.batch(EIGHT, seed=4)])
    batch = Collator(7)(rows)
    pairs = [kind.kv_scale(pair) for pair in comparisons(kind, batch, *views(kind, batch))]
    apart = torch.stack([(pair.student - pair.target)[pair.kept].square().mean() for pair in pairs]).mean()
    assert shown(kind)["kv_scaled"] == pytest.approx(float(apart.detach()), rel=1e-9)
    assert shown(kind).keys() - shown(make("head")).keys() == {"kv_scaled"}


def test_held_out_without_a_teacher_or_a_chain_of_thought() -> None:
    alone = make_objective(recipe_of(*HEAD), student(LLAMA)).eval()
    assert shown(alone).keys() == {"ce", "ppl"}
    assert not alone.training
    assert shown(alone)["ce"] == pytest.approx(shown(make("head"))["ce"], rel=1e-12)
    empty = encoded(((4, 0, 1), (2, 0, 2)))
    assert shown(make("head"), rows=empty).keys() == {"ce", "ppl"}
    assert held_out(make("head"), encoded(), Collator(7), 4, stop=lambda: True) is None


def test_a_teacher_of_the_same_weights_is_matched_at_once() -> None:
    model = fresh_student(LLAMA, seed=7)
    forms = (("explicit.choose=head",), ("explicit.choose=sample",), WHOLE, (*WHOLE, "explicit.aggregation=weighted"))
    for form in forms:
        for kind_of_loss in ("mse", "hybrid") if form == WHOLE else ("mse",):
            settings = ("projector.direction=none", f"loss.kv_loss_type={kind_of_loss}", "loss.alpha1_codi=1")
            kind = objective(model, teacher(LLAMA), *form, *settings)
            with torch.no_grad():
                for weight in kind.aux_state().values():
                    weight.zero_()
            terms = {term.name: float(term.total.detach()) for term in kind(zoo.batch(EIGHT)).terms}
            assert terms["kv"] == pytest.approx(0, abs=0 if kind_of_loss == "mse" else 1e-9)
            assert terms["codi"] == 0
        numbers = shown(kind)
        assert numbers["cossim"] == pytest.approx(1, abs=1e-12)
        assert numbers["cossim_centred"] == pytest.approx(1, abs=1e-12)
        assert numbers["cossim_mean_predictor"] < 0.99


# -- the guard's reference, and what is saved ------------------------------------------------------------------------


def test_the_reference_is_how_much_the_students_entries_vary() -> None:
    """Per part, layer and dimension; dropout and the mode it is in do not matter, and nothing is drawn."""
    model = fresh_student(LLAMA, attention_dropout=0.5)
    kind = objective(model, teacher(LLAMA, "large"), "projector.direction=teacher_to_student")
    kind.train()
    batch, state = zoo.batch(EIGHT), torch.get_rng_state()
    calibrate(kind, [take(batch, range(3)), take(batch, range(3, 8))], kind.compare.settings.match_start)
    assert kind.training
    assert torch.equal(torch.get_rng_state(), state)
    kind.eval()
    plain = make("down")
    for one in comparisons(plain, batch, *views(plain, batch)):
        stds = [row[kept].std(0) for row, kept in zip(one.student[:, 0], one.kept[:, 0], strict=True) if kept.sum() > 1]
        found = kind.compare.reference[int(one.kind == "v"), one.layer]
        torch.testing.assert_close(found, torch.stack(stds).mean(0), rtol=1e-9, atol=1e-9)
        assert len(stds) == 5


@every_shape
def test_what_is_trained_is_saved_and_loaded(shape: str, tmp_path: Path) -> None:
    kind, batch = make(shape), zoo.batch(EIGHT)
    aux_state.save(kind, tmp_path)
    mine = {name for name in kind.trained() if not name.startswith("model.")}
    path = tmp_path / aux_state.FILE
    saved = set(load_file(path)) if path.exists() else set()
    assert saved == kind.aux_state().keys() >= mine
    assert not any(name.startswith("model.") or "teacher.model" in name for name in saved)
    kind_, settings = SHAPES[shape]
    other = objective(student(LLAMA), teacher(LLAMA, kind_), *settings, seed=99)
    if saved:
        assert measure(other, [batch])[0] != measure(kind, [batch])[0]
    aux_state.load(other, tmp_path)
    assert measure(other, [batch])[0] == measure(kind, [batch])[0]


def test_weights_of_another_projector_are_refused(tmp_path: Path) -> None:
    aux_state.save(make("up"), tmp_path)
    for other in ("down", "whole-up"):
        with pytest.raises(CheckpointError, match=r"missing, unexpected or of another shape"):
            aux_state.load(make(other), tmp_path)
    (tmp_path / aux_state.FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        aux_state.load(make("up"), tmp_path)


# -- out of memory ---------------------------------------------------------------------------------------------------


class Starved(KavaTrainer):
    """Memory for `room` examples at a time; it runs out in the forward or, the gradients half added, in the backward."""

    room, when, after = 99, "forward", 0
    calls = 0

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        self.calls += 1
        loss = super().compute_loss(model, inputs, *rest, **named)
        if len(inputs["example_id"]) > self.room and self.calls > self.after:
            if self.when == "backward":
                loss.backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")
        return loss


def run(folder: Path, shape: str, *settings: str, **starved: Any) -> tuple[dict[str, Tensor], list[dict], Starved]:
    """Weights, log and trainer after three updates of two times four examples."""
    settings = (
        "training.gradient_accumulation_steps=2", "training.max_steps=3", "training.learning_rate=0.01",
        "training.on_oom=reduce_batch", "system.device=cpu", "system.sharding=none", "logging.report_to=[]",
        *(["projector.dropout=0"] if "down" in shape else []),
        *(() if any(one.startswith("training.batch_size") for one in settings) else ("training.batch_size=4",)),
        *(() if any(one.startswith("logging.") for one in settings) else ("logging.logging_steps=1",)),
        *settings,
    )  # fmt: skip
    kind, batch = make(shape, *settings, model=fresh_student(LLAMA)), zoo.batch(EIGHT)
    recipe = recipe_of(*SHAPES[shape][1], *settings)
    trainer = Starved(
        kind,
        recipe,
        None,
        Validation(lambda: None, "ce", lower=True),
        Interrupt(),
        args=training_arguments(recipe, folder),
        train_dataset=list(range(len(EIGHT))),  # type: ignore[arg-type]
        data_collator=lambda rows: take(batch, rows),
    )
    for name, value in starved.items():
        setattr(trainer, name, value)
    trainer.train()
    weights = {name: weight.detach().clone() for name, weight in kind.trained().items()}
    return weights, [line for line in trainer.state.log_history if "loss" in line], trainer


@pytest.fixture(scope="module")
def plenty(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, Tensor], list[dict]]]:
    """Weights and log with memory enough, each shape once."""
    return cache(lambda shape, *settings: run(tmp_path_factory.mktemp(shape), shape, *settings)[:2])


@pytest.mark.parametrize(
    ("shape", "every", "starved"),
    [
        ("down", 1, {"room": 2}),  # at once
        pytest.param(
            "head", 3, {"room": 1, "after": 3}, marks=pytest.mark.long
        ),  # the second update's second micro-batch
        ("whole-up", 3, {"room": 2, "when": "backward", "after": 3}),  # and one line of log for three updates
    ],
    ids=["at-once", "later", "in-the-backward"],
)
def test_less_memory_gives_the_same_weights_and_the_same_log(
    shape: str, every: int, starved: dict[str, Any], plenty: Any, tmp_path: Path
) -> None:
    wanted, log = plenty(shape, f"logging.logging_steps={every}")
    found, found_log, trainer = run(tmp_path, shape, f"logging.logging_steps={every}", **starved)
    assert max(len(piece["example_id"]) for piece in trainer.pieces.of(zoo.batch(EIGHT))) == starved["room"]
    assert_close(found, wanted)
    assert len(log) == len(found_log) == 3 // every
    for mine, theirs in zip(found_log, log, strict=True):
        for name in {"loss", "ce_student", "kv", "codi", "guard", "cka", "grad_norm"} & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("budget", [1, 40])
@pytest.mark.parametrize("shape", ["down", "head"])
def test_pieces_give_the_same_weights_and_the_same_log(shape: str, budget: int, plenty: Any, tmp_path: Path) -> None:
    wanted, log = plenty(shape, "logging.logging_steps=1")
    found, found_log, trainer = run(tmp_path, shape, f"training.tokens_per_piece={budget}")
    assert len(trainer.pieces.of(zoo.batch(EIGHT))) > 3
    assert_close(found, wanted)
    for mine, theirs in zip(found_log, log, strict=True):
        for name in {"loss", "ce_student", "kv", "codi", "guard", "cka", "grad_norm"} & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


def test_an_update_is_that_of_its_window(plenty: Any) -> None:
    """2 x 4 through transformers' own loop against one batch of 8: by the logged terms of the first update."""
    terms, _ = measure(make("down", "projector.dropout=0"), [zoo.batch(EIGHT)])
    _, log = plenty("down", "logging.logging_steps=1")
    for name, (total, count) in terms.items():
        assert log[0][name] == pytest.approx(float(total) / count, rel=1e-9), name


def test_out_of_memory_is_an_error_with_advice_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"out of memory with 4 examples at once \(CUDA out of memory") as caught:
        run(tmp_path, "up", "training.on_oom=error", room=2)
    assert "training.on_oom=reduce_batch" in (caught.value.hint or "")
    assert "training.gradient_accumulation_steps" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "processes", "hint"),
    [
        (("rkv.shuffle=examples",), 1, "rkv.shuffle=examples needs its batches whole"),
        (("loss.std_scope=batch",), 1, "loss.std_scope=batch needs its batches whole"),
        ((), 2, "processes that run together"),
        ((), 1, "one example at a time is too much already"),
    ],
    ids=["examples", "batch-std", "processes", "nothing-left"],
)
def test_what_cannot_be_cut_is_an_error_with_advice(settings: tuple, processes: int, hint: str) -> None:
    pieces = pieces_of(recipe_of("training.on_oom=reduce_batch", *settings), processes, torch.device("cpu"))

    def step(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")

    with pytest.raises(RunError, match=r"out of memory with \d examples at once \(CUDA out of memory") as caught:
        pieces.run(zoo.batch(EIGHT), step, lambda: None)
    assert hint in (caught.value.hint or "")


@pytest.mark.long
@pytest.mark.parametrize("part", ["k", "both"])
def test_two_processes_train_what_one_does(part: str, tmp_path: Path) -> None:
    """Data parallel on gloo, with a guarded projector: every weight that is trained gets its gradient on each rank."""
    wanted, _, _ = run(tmp_path / "one", "whole-down", f"explicit.parts={part}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    common = {**os.environ, "PYTHONPATH": path, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, __file__, str(tmp_path), part]
    ranks = [subprocess.Popen(words, env={**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"rank{rank}.pt"), wanted)


if __name__ == "__main__":
    place, mine = Path(sys.argv[1]), os.environ["RANK"]
    settings = ("training.batch_size=2", f"explicit.parts={sys.argv[2]}")
    torch.save(run(place / mine, "whole-down", *settings)[0], place / f"rank{mine}.pt")
