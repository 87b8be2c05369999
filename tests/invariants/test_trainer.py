"""One update through transformers' own loop: however 8 samples are split, the gradient is that of the 8 at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import zoo
from compare import gradients, objective, take
from kava.config import load_recipe
from kava.losses import add
from kava.objective.objective import Objective
from kava.training.arguments import training_arguments
from kava.training.interrupt import Interrupt
from kava.training.trainer import KavaTrainer

EIGHT = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 4, 1), (2, 9, 2), (7, 1, 2), (3, 0, 1), (5, 5, 4))
SPLITS = ((8, 1), (2, 4), (1, 8))  # samples per micro-batch, micro-batches


class Spy(TrainerCallback):
    """Keeps the gradients that the optimizer is about to see."""

    def __init__(self, kind: Objective):
        self.kind = kind
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        named = self.kind.model.named_parameters()
        self.found = {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in named}


def one_update(
    folder: Path, samples: int, steps: int, packed: bool = True, budget: int | str = "auto"
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The gradients of one update over EIGHT, and what the trainer logged."""
    settings = [
        f"training.batch_size={samples}", f"training.gradient_accumulation_steps={steps}", "training.max_steps=1",
        "training.gradient_clipping=0", "system.device=cpu", "logging.report_to=[]", "logging.logging_steps=1",
        f"training.tokens_per_piece={budget}", "system.sharding=none",
    ]  # fmt: skip
    recipe, batch = load_recipe("debug", settings), zoo.batch(EIGHT)
    kind = objective(zoo.latent_model("llama-gqa"), packed)
    trainer = KavaTrainer(
        kind,
        recipe,
        None,
        lambda: None,
        Interrupt(),
        args=training_arguments(recipe, folder),
        train_dataset=list(range(len(EIGHT))),  # type: ignore[arg-type]
        data_collator=lambda rows: take(batch, rows),
    )
    spy = Spy(kind)
    trainer.add_callback(spy)
    trainer.train()
    return spy.found, trainer.state.log_history


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_accumulated_gradients_are_those_of_one_batch(packed: bool, tmp_path: Path) -> None:
    kind = objective(zoo.latent_model("llama-gqa"), packed)
    terms = kind(zoo.batch(EIGHT)).terms
    wanted = gradients(add(terms), kind.model)
    for samples, steps in SPLITS if packed else SPLITS[1:2]:
        found, log = one_update(tmp_path / str(samples), samples, steps, packed)
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9, msg=f"{samples}x{steps}: {name}")
        for term in terms:
            assert log[0][term.name] == pytest.approx(float(term.value().detach()), abs=1e-9)
        assert log[0]["loss"] == pytest.approx(float(add(terms).detach()), abs=1e-3)  # older versions round it


def test_an_update_in_pieces_of_like_lengths_is_the_same_update(tmp_path: Path) -> None:
    """Gradients, logged terms and figures of the log, whatever the budget: rows alone, some together, all in one."""
    logs, wanted = [], {}
    for budget in ("none", 1, 20, 45, 80, 1000):
        found, log = one_update(tmp_path / str(budget), 8, 1, budget=budget)
        logs.append({name: value for name, value in log[0].items() if name != "tokens_per_second"})
        assert {"kept_share", "latent_norm", "latent_cosine", "jacobi_residual"} <= logs[-1].keys()
        wanted = wanted or found  # the whole update
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9, msg=f"{budget}: {name}")
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], rel=1e-6)


@pytest.mark.long
def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    """Data parallel on gloo: the counts are those of both ranks, and DDP's mean is undone."""
    kind = objective(zoo.latent_model("llama-gqa"))
    wanted = gradients(add(kind(zoo.batch(EIGHT)).terms), kind.model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    common = {**os.environ, "PYTHONPATH": path, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == 2
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9, msg=f"rank {rank}: {name}")


if __name__ == "__main__":
    place, mine = Path(sys.argv[1]), os.environ["RANK"]
    budget = 1 if mine == "0" else 1000  # one computes row by row, the other all at once: as many all-reduces
    torch.save(one_update(place / mine, samples=2, steps=2, budget=budget)[0], place / f"rank{mine}.pt")
    (place / f"rank{mine}.json").write_text(json.dumps(torch.distributed.get_world_size()))
