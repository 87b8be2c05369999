"""system.sharding=fsdp2, layer by layer: several processes compute what one computes, and none of them holds the model."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

import compare
import explicit
import mixtures
import processes
import zoo
from kava.backbone.artifact import load_weights
from kava.backbone.families import family_of
from kava.backbone.layer_units import LayerUnit
from kava.backbone.load import SHIPPED
from kava.backbone.lora import add_lora
from kava.backbone.model import LatentModel, plain_name
from kava.backbone.recompute import recompute_layers
from kava.config import LatentConfig, LoraConfig, SystemConfig, load_recipe
from kava.errors import CheckpointError
from kava.infer.generate import generate
from kava.infer.student import Student
from kava.losses import add
from kava.objective.objective import Objective
from kava.objective.targets import MixtureOfTeachers, SeparateTeacher
from kava.run_files import read_log
from kava.teachers.base import TeacherWants
from kava.training import checkpoint
from kava.training.processes import shard_world
from kava.training.run import train
from kava.training.sharded_teacher import ShardedTeacher
from kava.training.sharding import Sharded, whole_tensor

UPDATES = 5
Batch = dict[str, Tensor]


def sharded(kind: Objective, **more: Any) -> Sharded:
    """The objective and its live teachers in shards."""
    system, source = SystemConfig(sharding="fsdp2", **more), kind.source

    def cut(teacher: Any) -> ShardedTeacher:  # a copy: other cases have the same teacher
        return ShardedTeacher(copy.deepcopy(teacher), torch.device("cpu"), system)

    if isinstance(source, SeparateTeacher):
        source.teacher = cut(source.teacher)
    if isinstance(source, MixtureOfTeachers):
        source.teachers = replace(source.teachers, teachers=tuple(map(cut, source.teachers.teachers)))
    return Sharded(kind, torch.device("cpu"), system)


def adapted() -> LatentModel:
    """Latents with LoRA and gradient checkpointing, the embedding tied to the head."""
    lm = zoo.causal_lm("llama-mha")
    family = family_of(lm.config, "llama-mha")
    recompute_layers(lm, family)
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process, a new one as the several are, has written the five updates of each case."""
    folder = tmp_path_factory.mktemp("alone")
    assert processes.by_hand(__file__, "alone", str(folder), count=1) == [0]
    return folder


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    torch.testing.assert_close(torch.stack(found["losses"]), torch.stack(wanted["losses"]), rtol=1e-9, atol=1e-9)
    pairs = zip([*found["gradients"], found["weights"]], [*wanted["gradients"], wanted["weights"]], strict=True)
    for update, (own, alone) in enumerate(pairs):
        assert own.keys() == alone.keys()
        for name, value in alone.items():
            off = float((own[name] - value).abs().max())
            assert off < 1e-9 * max(1, float(value.abs().max())), (name, update, off)


@pytest.mark.long
@pytest.mark.parametrize(("count", "on_a_node"), [(2, 2), (4, 4), (4, 2)])
def test_several_processes_compute_what_one_computes(
    count: int, on_a_node: int, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And hold no more than their share of the weights and two layers, and answer as one does; two nodes have a copy each.

    The fast suite compares two in `test_processes.py`.
    """
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_a_node))
    assert processes.by_hand(__file__, "compute", str(tmp_path), count=count) == [0] * count
    for name in CASES:
        for rank in range(count):
            assert_equal(torch.load(tmp_path / f"{name}-{rank}.pt"), torch.load(alone / f"{name}.pt"))


# -- runs that are stopped and go on with other numbers of processes ---------------------------------------------------

TERM = 128 + signal.SIGTERM
SHORT = (
    "dataset.generator.train_size=20", "dataset.generator.val_size=4", "training.max_steps=6", "system.device=cpu",
    "training.optimizer=sgd", "training.learning_rate=0.05", "logging.logging_steps=1", "logging.eval_steps=3",
    "logging.save_steps=100", "logging.report_to=[]", "evaluation.max_new_tokens=4", "loss.alpha1_codi=1",
)  # fmt: skip
LORA = ("lora.enabled=true", "lora.r=3", "lora.dropout=0", "training.gradient_checkpointing=true")


class TermAt(TrainerCallback):
    """Sends this process TERM during an update."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step and args.process_index == 0:
            signal.raise_signal(signal.SIGTERM)


def run(folder: Path, size: int, until: int, *settings: str) -> int:
    """The exit code of a run of the model beside `folder` with this batch size; TERM comes in the update `until`."""
    system = [f"model.name={folder.parent / 'model'}", f"training.batch_size={size}", "system.sharding=fsdp2"]
    recipe = load_recipe("debug", [*SHORT, *system, *settings])
    return train(recipe, folder, resume="auto", quiet=True, callbacks=[TermAt(until)]).exit_code


def four_layers(folder: Path) -> Path:
    """A random model that four processes may shard."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = SHIPPED["kava:embedded"]
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(place, n_layer=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(place).save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("settings", [(), LORA], ids=["full", "lora"])
def test_four_begin_two_go_on_and_one_ends(settings: tuple[str, ...], tmp_path: Path) -> None:
    four_layers(tmp_path / "model")
    assert run(tmp_path / "alone", 8, 0, *settings) == 0
    folder = tmp_path / "run"
    assert processes.by_hand(__file__, "run", str(folder), "2", *settings, count=4) == [TERM] * 4
    assert sorted(path.name for path in (folder / "checkpoint-step2" / "shards").iterdir()) == [
        ".metadata", *(f"__{rank}_0.distcp" for rank in range(4)),
    ]  # fmt: skip
    assert not (folder / "checkpoint-step2" / "trained.safetensors").exists()
    assert processes.by_hand(__file__, "run", str(folder), "4", *settings, count=2) == [TERM] * 2
    assert run(folder, 2, 0, *settings) == 0
    logs = [[line for line in read_log(place) if "loss" in line] for place in (folder, tmp_path / "alone")]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    for own, alone in zip(*logs, strict=True):
        assert own["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert own["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    assert {path.name for path in (folder / "best_checkpoint").iterdir()} == {
        path.name for path in (tmp_path / "alone" / "best_checkpoint").iterdir()
    }
    places = [checkpoint.find(place)[0][-1] for place in (folder, tmp_path / "alone")]
    assert [place.step for place in places] == [6, 6]
    last = [load_file(place.path / "trained.safetensors") for place in places]
    for name, value in last[1].items():
        torch.testing.assert_close(last[0][name], value, rtol=1e-4, atol=1e-5)
    refused(folder, settings)


def refused(folder: Path, settings: tuple[str, ...]) -> None:
    """A checkpoint in shards answers as a student does; without a process's file it is named and passed over."""
    two = folder / "checkpoint-step4"
    assert Student.from_pretrained(two, device="cpu").answer(["3+4?"], max_new_tokens=3)
    for name, spoil in (("__1_0.distcp", Path.unlink), (".metadata", lambda path: path.write_bytes(b"torn"))):
        copy = shutil.copytree(two, folder.parent / f"copy{name}")
        spoil(copy / "shards" / name)
        with pytest.raises(
            CheckpointError, match=rf"shards/{name} is (missing \(a checkpoint of 2|not the file)"
        ) as error:
            Student.from_pretrained(copy)
        assert "\n" not in error.value.message
        assert checkpoint.problem(copy) or checkpoint.damaged(copy)
    (copy / "kava.json").write_text((copy / "kava.json").read_text().replace("shards", "shreds"))
    with pytest.raises(CheckpointError):
        load_weights(None, copy)  # type: ignore[arg-type]


# -- in each process -------------------------------------------------------------------------------------------------


def fsdp_weights(root: nn.Module) -> list[list[Any]]:
    """The records that FSDP keeps of the weights of each unit."""
    units: list[Any] = [part for part in root.modules() if isinstance(part, FSDPModule)]
    return [unit._get_fsdp_state()._fsdp_param_group.fsdp_params for unit in units]


@contextmanager
def held(most: list[int], root: nn.Module) -> Iterator[None]:
    """Adds to `most`, whenever weights are gathered, the bytes of all weights that this process holds at that moment."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    weights = [weight for unit in fsdp_weights(root) for weight in unit]
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
    run, most = sharded(kind), list[int]()
    batch = zoo.batch(explicit.EIGHT)
    with held(most, run):
        add(run(batch).terms).backward()
        training, most[:] = max(most), []
        run.run(lambda: generate(model, batch["question"], batch["question_mask"], [51, 52], 1, 3))
    assert layer < training <= 1.02 * everything / count + 2 * layer + rest, (training, everything, layer, rest)
    assert layer < max(most) <= 1.02 * everything / count + 2 * layer + rest


def check_half() -> None:
    """Layers are gathered in bfloat16 and offloaded; loss and gradients are those of one process but for its rounding."""
    batch, measured = zoo.batch(explicit.EIGHT), []
    for shard in (False, True):
        kind = compare.objective(zoo.latent_model("llama-gqa", dtype=torch.float32))
        run: Any = sharded(kind, mixed_precision="bf16", cpu_offload=True) if shard else kind
        with torch.autocast("cpu", torch.bfloat16):
            loss = add(run(batch).terms)
        loss.backward()
        measured.append((float(loss), {name: whole_tensor(weight.grad) for name, weight in kind.trained().items()}))
    types = {weight.param_dtype for unit in fsdp_weights(run.root.inner.model.decoder.layers) for weight in unit}
    assert types == {torch.bfloat16}
    assert run.run(lambda: generate(kind.model, batch["question"], batch["question_mask"], [51, 52], 1, 3))
    assert measured[1][0] == pytest.approx(measured[0][0], rel=1e-2)
    for name, value in measured[0][1].items():
        own = measured[1][1][name]
        assert own.dtype == torch.float32
        assert float((own - value).norm() / value.norm()) < 0.1, name


def check_foreign(count: int) -> None:
    """A teacher that is read through its cache, twice."""
    batch, whole = zoo.batch(explicit.EIGHT), mixtures.teacher("neox")
    cut = ShardedTeacher(copy.deepcopy(whole), torch.device("cpu"), SystemConfig(sharding="fsdp2", cpu_offload=True))
    wanted = whole(batch, TeacherWants(rotary=False))
    for _ in range(2):
        entries = cut(batch, TeacherWants(rotary=False))
        torch.testing.assert_close(entries.keys + entries.values, wanted.keys + wanted.values)
    held_here = sum(weight.to_local().numel() for weight in cut.model.parameters())  # type: ignore[attr-defined]
    everything = sum(weight.numel() for weight in whole.model.parameters())
    assert held_here < 1.2 * everything / count


def check_answers() -> None:
    """Validation's answers, before and after an update, are those of the plain model."""
    batch, answers = zoo.batch(explicit.EIGHT), []
    for shard in (False, True):
        kind = compare.objective(zoo.latent_model("llama-gqa"))
        run: Any = sharded(kind) if shard else None
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
    place, own, everyone = Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if sys.argv[1] == "run":
        sys.exit(run(place, 2, int(sys.argv[3]), *sys.argv[4:]))
    if sys.argv[1] == "alone":
        for case in CASES:
            torch.save(trained(case, lambda kind: kind, 0, 1), place / f"{case}.pt")
        sys.exit(0)
    distributed.init_process_group("gloo")
    for case in CASES:
        made = trained(case, sharded, own, everyone)
        torch.save(made, place / f"{case}-{own}.pt")
    check_memory(shard_world(everyone))
    check_foreign(shard_world(everyone))
    check_half()
    check_answers()
    distributed.destroy_process_group()
