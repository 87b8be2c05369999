"""An update waits for the device at most twice: batches are counted, cut and planned on the CPU, and sums stay where they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from compare import UNEVEN, assert_same, measure, objective
from kava.data.cut import cut
from kava.lab.bench.host_reads import counted_reads
from kava.objective.plan import planned
from kava.training.trainer import KavaTrainer
from kava.training.unread import Sums, read

SMALL = {"training.max_steps": 4, "training.batch_size": 4, "training.gradient_accumulation_steps": 2,
         "training.tokens_per_piece": 64, "logging.logging_steps": 4, "logging.report_to": [], "system.device": "cpu",
         "dataset.generator.val_size": 0, "dataset.generator.train_size": 64}  # fmt: skip


NO_ROUNDS = {"latent.num_iterations": 0}


@pytest.mark.parametrize(
    ("way", "name", "more"),
    [("train", "embedded", {}), ("train", "embedded", NO_ROUNDS), ("distill", "explicit_embedded", {})],
)
def test_an_update_reads_the_device_at_most_twice(
    way: str, name: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kava

    reads: dict[int, int] = {}
    pieces: list[int] = []
    inside = KavaTrainer.training_step

    def counted(self: KavaTrainer, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        pieces.append(len(self.pieces.of(inputs)))
        with counted_reads(torch.device("cpu")) as count:
            loss = inside(self, model, inputs, *rest, **named)
        update = self.state.global_step
        reads[update] = reads.get(update, 0) + count.count
        return loss

    monkeypatch.setattr(KavaTrainer, "training_step", counted)
    getattr(kava, way)(kava.load_recipe(name, SMALL | more), tmp_path / "run", quiet=True)
    assert len(reads) == 4
    assert max(reads[update] for update in range(3)) <= 1  # the last update is logged
    assert max(pieces) > 1


def test_batches_reach_the_trainer_on_the_cpu() -> None:
    """The loader moves nothing, and the library's own check of every micro-batch's loss, a read, is off."""
    from kava.config import load_recipe
    from kava.training.arguments import training_arguments

    recipe = load_recipe("debug", ["system.device=cpu", "logging.report_to=[]"])
    assert training_arguments(recipe, Path("unused")).logging_nan_inf_filter is False


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("latent", [{}, {"num_iterations": 0}])
def test_a_planned_batch_gives_the_same_numbers(side: str, packed: bool, latent: dict[str, int]) -> None:
    kind = objective(zoo.latent_model("llama-gqa", **latent), packed)
    for batch in (zoo.batch(UNEVEN, side), *cut(zoo.batch(UNEVEN, side), 12)):
        assert_same(measure(kind, planned(batch)), measure(kind, batch), 0)


def test_sums_are_read_at_once() -> None:
    sums = Sums(
        float, {"a": torch.tensor(2.0, dtype=torch.float64), "b": 3.0, "c": torch.tensor(0.5, dtype=torch.float64)}
    )
    with counted_reads(torch.device("cpu")) as count:
        values = read(sums)
    assert dict(values) == {"a": 2.0, "b": 3.0, "c": 0.5}
    assert count.count <= 2
    assert values["nothing"] == 0
