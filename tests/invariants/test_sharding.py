"""system.sharding=fsdp2, layer by layer: several processes compute what one computes, and none of them holds the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule

import compare
import explicit
import mixtures
import processes
import zoo
from kava.backbone.families import family_of
from kava.backbone.layer_units import LayerUnit
from kava.backbone.lora import add_lora
from kava.backbone.model import LatentModel, plain_name
from kava.config import LatentConfig, LoraConfig
from kava.infer.generate import generate
from kava.losses import add
from kava.objective.objective import Objective
from kava.training.sharding import Sharded, whole_tensor

UPDATES = 5
Batch = dict[str, Tensor]


def adapted() -> LatentModel:
    """Latents with LoRA and gradient checkpointing, the embedding tied to the head."""
    lm = zoo.causal_lm("llama-mha")
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    family = family_of(lm.config, "llama-mha")
    torch.manual_seed(2)
    lora = add_lora(lm, family, zoo.SPECIAL, LoraConfig(r=3, dropout=0))
    for name, weight in lora.named_parameters():
        if "lora_B" in name:  # else its partner has no gradient in the first update
            nn.init.normal_(weight, std=0.1)
    model = LatentModel(lora, family, zoo.SPECIAL, LatentConfig(num_tokens=4, num_iterations=3), True)
    return model.double().train()


CASES: dict[str, Callable[[], tuple[Objective, Batch]]] = {
    "latent": lambda: (compare.objective(zoo.latent_model("llama-gqa")), zoo.batch(explicit.EIGHT)),
    "latent, gpt2": lambda: (compare.objective(zoo.latent_model("gpt2")), zoo.batch(explicit.EIGHT)),
    "latent, tied": lambda: (compare.objective(zoo.latent_model("llama-mha")), zoo.batch(explicit.EIGHT)),
    "latent, unpacked": lambda: (compare.objective(zoo.latent_model("qwen2"), False), zoo.batch(explicit.EIGHT)),
    "latent, lora": lambda: (compare.objective(adapted()), zoo.batch(explicit.EIGHT)),
    "explicit": lambda: (
        explicit.make("down", model=explicit.fresh_student(explicit.LLAMA)),
        zoo.batch(explicit.EIGHT),
    ),
    "mixture": lambda: (
        mixtures.objective(
            mixtures.THREE, *mixtures.HEAD, *mixtures.ROUTED, "mixture.per_layer=true", "explicit.cka_weight=0.5",
            model=explicit.fresh_student(explicit.LLAMA),
        ),
        mixtures.batch(mixtures.THREE, explicit.EIGHT),
    ),
}  # fmt: skip


def trained(name: str, shard: Callable[[Objective], Any], rank: int, count: int) -> dict[str, Any]:
    """Losses, gradients and weights of five updates; each process has its share of the examples, in two micro-batches."""
    kind, batch = CASES[name]()
    counts = {term: number or 1.0 for term, number in kind.counts(batch).items()}
    run = shard(kind)
    weights = [weight for weight in kind.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=1e-3, eps=1e-4
    )  # a pad's gradient is rounding, which eps must not enlarge
    losses, gradients = [], []
    rows = list(range(8))[rank::count]
    for _ in range(UPDATES):
        total = torch.zeros((), dtype=torch.float64)
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            loss = add(run({field: value[part] for field, value in batch.items()}).terms, counts)
            (loss * count).backward()  # as DDP does, FSDP takes the mean
            total += loss.detach()
        if count > 1:
            distributed.all_reduce(total)
        losses.append(total)
        gradients.append({n: whole_tensor(weight.grad).clone() for n, weight in kind.trained().items()})
        optimizer.step()
        optimizer.zero_grad()
    final = {plain_name(n): whole_tensor(weight.detach()).clone() for n, weight in kind.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": final}


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    torch.testing.assert_close(torch.stack(found["losses"]), torch.stack(wanted["losses"]), rtol=1e-9, atol=1e-9)
    pairs = zip([*found["gradients"], found["weights"]], [*wanted["gradients"], wanted["weights"]], strict=True)
    for update, (own, alone) in enumerate(pairs):
        assert own.keys() == alone.keys()
        for name, value in alone.items():
            off = float((own[name] - value).abs().max())
            assert off < 1e-9 * max(1, float(value.abs().max())), (name, update, off)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_what_one_computes(count: int, tmp_path: Path) -> None:
    """And hold no more than their share of the weights and two layers, and answer as one does.

    The fast suite compares two in `test_processes.py`.
    """
    assert processes.by_hand(__file__, str(tmp_path), count=count) == [0] * count
    for name in CASES:
        wanted = trained(name, lambda kind: kind, 0, 1)
        for rank in range(count):
            assert_equal(torch.load(tmp_path / f"{name}-{rank}.pt"), wanted)


# -- in each process -------------------------------------------------------------------------------------------------


@contextmanager
def held(most: list[int], root: nn.Module) -> Iterator[None]:
    """Adds to `most`, whenever weights are gathered, the bytes of all weights that this process holds at that moment."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    groups = [part._get_fsdp_state()._fsdp_param_group for part in root.modules() if isinstance(part, FSDPModule)]
    weights = [weight for group in groups for weight in group.fsdp_params]
    before = FSDPParamGroup.wait_for_unshard

    def look(group: Any) -> None:
        before(group)
        shards = [weight._sharded_local_tensor for weight in weights]
        whole = [part for weight in weights for part in weight.all_gather_outputs]
        most.append(sum(part.untyped_storage().nbytes() for part in (*shards, *whole)))

    FSDPParamGroup.wait_for_unshard = look  # type: ignore[method-assign]
    try:
        yield
    finally:
        FSDPParamGroup.wait_for_unshard = before  # type: ignore[method-assign]


def size(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def check_memory(count: int) -> None:
    """A process holds its share of all weights, two layers, and embedding, head and what is trained beside them."""
    lm = zoo.causal_lm("llama-gqa", num_hidden_layers=8)
    torch.manual_seed(1)
    settings = LatentConfig(num_tokens=4, num_iterations=3)
    model = LatentModel(lm, family_of(lm.config, ""), zoo.SPECIAL, settings, True).double()
    kind = compare.objective(model)
    layer, everything = size(lm.model.layers[0]), size(kind)
    rest = everything - 8 * layer
    sharded, most = Sharded(kind, torch.device("cpu"), by_layer=True), []
    batch = zoo.batch(explicit.EIGHT)
    with held(most, sharded):
        add(sharded(batch).terms).backward()
        training, most[:] = max(most), []
        sharded.run(lambda: generate(model, batch["question"], batch["question_mask"], [51, 52], 1, 3))
    assert layer < training <= 1.02 * everything / count + 2 * layer + rest, (training, everything, layer, rest)
    assert layer < max(most) <= 1.02 * everything / count + 2 * layer + rest


def check_answers() -> None:
    """Validation's answers, before and after an update, are those of the plain model."""
    batch, answers = zoo.batch(explicit.EIGHT), []
    for shard in (False, True):
        kind = compare.objective(zoo.latent_model("llama-gqa"))
        run: Any = Sharded(kind, torch.device("cpu"), by_layer=True) if shard else None
        asked = [kind.model, batch["question"], batch["question_mask"], [51, 52], 1, 6]
        answers.append([])
        for _ in range(2):
            answers[-1].append(run.run(lambda a=asked: generate(*a)) if shard else generate(*asked))
            add((run or kind)(batch).terms).backward()
            torch.optim.SGD(kind.parameters(), lr=0.1).step()
    assert answers[0] == answers[1]
    units = [part for part in run.modules() if isinstance(part, LayerUnit)]
    assert len(units) == 3
    run.consolidate()
    if distributed.get_rank() == 0:
        assert not any(type(weight).__name__ == "DTensor" for weight in kind.parameters())
        assert generate(*asked) != []


if __name__ == "__main__":
    place, own, everyone = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group("gloo")
    for case in CASES:
        made = trained(case, lambda kind: Sharded(kind, torch.device("cpu"), by_layer=True), own, everyone)
        torch.save(made, place / f"{case}-{own}.pt")
    check_memory(everyone)
    check_answers()
    distributed.destroy_process_group()
