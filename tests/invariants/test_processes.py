"""Several processes train what one does: every update has the same examples, each counted once, and the same gradients.

With DDP each process holds everything; with system.sharding each holds a shard. Students are those of one process.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import BatchSampler
from transformers import TrainerCallback

import compare
import explicit
import many
import mixtures
import processes
import zoo
from kava.backbone.artifact import WEIGHTS, saved_weights
from kava.backbone.model import plain_name
from kava.config import load_recipe
from kava.errors import CheckpointError, ConfigError
from kava.losses import add
from kava.objective.objective import Objective
from kava.training.arguments import training_arguments
from kava.training.aux_state import FILE
from kava.training.callbacks import GradientNorms
from kava.training.interrupt import Interrupt
from kava.training.processes import (
    BatchLayout,
    PaddedBatchSampler,
    batch_layout,
    is_distributed,
    main_process_decides,
    max_over_processes,
)
from kava.training.run import train
from kava.training.sharded_checkpoint import plain
from kava.training.sharding import refuse_types, whole_tensor
from kava.training.trainer import KavaTrainer, Validation

# -- who reads what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_example_is_read_once_in_the_updates_of_one_process(drop_last: bool) -> None:
    for examples in range(1, 26):
        for size, count in ((1, 2), (2, 2), (3, 4), (4, 3)):
            alone = BatchSampler(range(examples), size, drop_last)
            shares = []
            for rank in range(count):
                shard = BatchSamplerShard(PaddedBatchSampler(alone, count), count, rank, even_batches=False)
                shares.append(list(shard))
                assert len(shard) == len(shares[-1])
            assert len({len(share) for share in shares}) == 1  # or one would wait for the others
            order = [share[turn] for turn in range(len(shares[0])) for share in shares]
            assert order[: len(alone)] == list(alone)
            assert all(len(batch) == 1 for batch in order[len(alone) :])  # these do not count
            assert len(order) - len(alone) < count


LAYOUTS = (  # batch size, steps, processes before, processes now, what comes out
    (4, 1, 2, 1, (4, 2)),
    (4, 1, 1, 2, (2, 1)),
    (4, 2, 1, 2, (4, 1)),
    (4, 3, 2, 4, (3, 2)),  # 24 examples: 2 x 4 x 3
    (4, 1, 3, 2, (3, 2)),  # 12: 2 x 3 x 2
    (4, 1, 8, 3, None),  # 32 among 3
    (1, 1, 1, 2, None),
    (4, 2, 2, 2, (4, 2)),
)


@pytest.mark.parametrize(("size", "steps", "before", "now", "wanted"), LAYOUTS)
def test_an_update_keeps_its_examples(size: int, steps: int, before: int, now: int, wanted: Any) -> None:
    recipe = load_recipe("debug", [f"training.batch_size={size}", f"training.gradient_accumulation_steps={steps}"])
    examples = size * steps * before
    if wanted is None:
        with pytest.raises(CheckpointError, match=rf"begun with {examples} examples.*cannot be shared out evenly"):
            batch_layout(recipe, now, examples)
        return
    found = batch_layout(recipe, now, examples)
    assert found == BatchLayout(*wanted)
    assert found.examples(now) == examples
    assert found.batch_size <= size
    assert batch_layout(recipe, now) == BatchLayout(size, steps)


@pytest.mark.parametrize("key", ["rkv.shuffle=examples", "loss.std_scope=batch", "dataset.streaming=true"])
def test_what_depends_on_micro_batches_is_not_laid_out_anew(key: str) -> None:
    settings = ["training.batch_size=4", key, *(["dataset.name=x.jsonl"] if "stream" in key else [])]
    recipe = load_recipe("debug", settings)
    assert batch_layout(recipe, 2, 8) == BatchLayout(4, 1)
    with pytest.raises(CheckpointError, match=key.partition(".")[2].partition("=")[0].removesuffix("ing")) as caught:
        batch_layout(recipe, 1, 8)
    assert "as many processes as before" in (caught.value.hint or "")


def test_alone_nobody_is_asked() -> None:
    assert not is_distributed()
    assert main_process_decides(lambda: "mine") == "mine"
    assert max_over_processes(15) == 15
    interrupt = Interrupt()
    assert not interrupt.look()
    with interrupt:
        signal.raise_signal(signal.SIGUSR1)
        assert interrupt.look()
    assert interrupt.exit_code == 128 + signal.SIGUSR1


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["fsdp", "fsdp_config", "deepspeed"])
def test_wrapping_layer_by_layer_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"hf\.{field} is set by system\.sharding=fsdp2"):
        load_recipe("debug", [f"training.hf={{{field}: full_shard auto_wrap}}"])


def test_so_is_a_launcher_that_would_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_FSDP is set: wrapped by accelerate"):
        training_arguments(load_recipe("debug", ["logging.report_to=[]"]), tmp_path)


def test_what_shards_cannot_hold_is_refused() -> None:
    two = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()])
    with pytest.raises(ConfigError, match="one type for all that is trained, and here it is bfloat16 and float32"):
        refuse_types(two)
    two[1].requires_grad_(False)
    refuse_types(two)


def test_a_teacher_on_all_gpus_is_refused_beside_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kava.backbone.load import build_model, load_teacher

    recipe = load_recipe("explicit_embedded", ["teacher.device_map=auto"])
    tokenizer = build_model(recipe)[1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"teacher\.device_map is auto.*several processes"):
        load_teacher(recipe, tokenizer, torch.device("cpu"))


# -- every weight gets a gradient in every batch: DDP waits for all of them ------------------------------------------

TEXTS = {"usual": explicit.UNEVEN, "none has a chain of thought": ((4, 0, 1), (2, 0, 2)), "one token": ((3, 1, 2),)}
MIXED = (
    mixtures.HEAD,
    (*mixtures.SAMPLE, *mixtures.ROUTED, "mixture.per_layer=true", "mixture.per_token=true"),
    (*mixtures.SAMPLE, "mixture.fusion=learnable", "mixture.router=attention"),
    (*mixtures.SAMPLE, "mixture.weights=[0.5,0.5,0]"),
    (*mixtures.SAMPLE, "mixture.layer_warmup=0.5", "explicit.cka_weight=1"),
    (*mixtures.SAMPLE, "mixture.heads=conv", "mixture.share_adapters=true", "explicit.parts=v"),
    ("explicit.form=aggregated", "explicit.aggregation=weighted"),
    (*mixtures.Z, *mixtures.ROUTED, "mixture.layer_warmup=0.5"),
)


def without_gradient(kind: Any, batch: dict[str, Tensor]) -> list[str]:
    """Names that one forward and backward leave alone, with the counts of an update in which nothing is compared."""
    kind.zero_grad(set_to_none=True)
    counts = {name: count or 1.0 for name, count in kind.counts(batch).items()}
    add(kind(batch).terms, counts).backward()
    assert all(weight.grad.isfinite().all() for weight in kind.trained().values() if weight.grad is not None)
    return [name for name, weight in kind.trained().items() if weight.grad is None]


@pytest.mark.parametrize("shape", explicit.SHAPES)
def test_one_teacher_leaves_no_weight_alone(shape: str) -> None:
    kind = explicit.make(shape, model=explicit.fresh_student(explicit.LLAMA))
    for lengths in TEXTS.values():
        assert without_gradient(kind, zoo.batch(lengths)) == []


@pytest.mark.parametrize("settings", MIXED, ids=range(len(MIXED)))
def test_a_mixture_leaves_no_weight_alone(settings: tuple[str, ...]) -> None:
    kind = mixtures.objective(mixtures.THREE, *settings, model=explicit.fresh_student(explicit.LLAMA))
    for lengths, lacking in zip(TEXTS.values(), (1, None, 0), strict=True):  # who has matched nothing of this batch
        batch = mixtures.batch(mixtures.THREE, lengths)
        if lacking is not None:
            batch[f"t{lacking}.iou"] = torch.zeros_like(batch[f"t{lacking}.iou"])
        assert without_gradient(kind, batch) == []


@pytest.mark.parametrize("latent", [{}, {"num_iterations": 0}, {"num_tokens": 1}, {"method": "sequential"}], ids=str)
def test_latents_leave_no_weight_alone(latent: dict[str, Any]) -> None:
    for loss in ({}, {"teacher_ce": 0}, {"student_ce": 0, "teacher_ce": 0, "alpha1_codi": 0}):
        kind = compare.objective(zoo.latent_model(explicit.LLAMA, **latent), **loss)
        for lengths in TEXTS.values():
            assert without_gradient(kind, zoo.batch(lengths)) == []


def test_ddp_is_told_of_a_projection_that_nothing_trains() -> None:
    kind = compare.objective(zoo.latent_model(explicit.LLAMA), student_ce=0, alpha1_codi=0, alpha2_kv=0)
    assert without_gradient(kind, zoo.batch()) == kind._ddp_params_and_buffers_to_ignore


# -- three updates over nine examples: the fifth batch of two has no partner ------------------------------------------

NINE = (*explicit.EIGHT, (2, 3, 1))
WRAPPERS = {"none": "DistributedDataParallel", "fsdp2": "Sharded", "fsdp2_whole": "Sharded"}
UNITS = {"none": 0, "fsdp2": 3 + 1, "fsdp2_whole": 1}  # that FSDP gathers: the layers and the rest, or everything


class Spy(TrainerCallback):
    """The gradients that the optimizer is about to see, update by update."""

    def __init__(self, kind: Objective):
        self.kind = kind
        self.found: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        named = self.kind.trained().items()
        self.found.append({name: whole_tensor(weight.grad).clone() for name, weight in named})


def trainer_of(folder: Path, size: int, sharding: str = "none") -> KavaTrainer:
    settings = [
        f"training.batch_size={size}", "training.gradient_accumulation_steps=2", "training.max_steps=3",
        "training.gradient_clipping=0.5", "system.device=cpu", "logging.report_to=[]", "logging.logging_steps=1",
        f"system.sharding={sharding}", f"training.tokens_per_piece={'none' if size == 4 else 24}",
    ]  # fmt: skip
    recipe, batch = load_recipe("debug", settings), zoo.batch(NINE)
    kind = compare.objective(zoo.latent_model(explicit.LLAMA))
    return KavaTrainer(
        kind,
        recipe,
        None,
        Validation(lambda: None, "accuracy"),
        Interrupt(),
        args=training_arguments(recipe, folder),
        train_dataset=list(range(len(NINE))),  # type: ignore[arg-type]
        data_collator=lambda rows: compare.take(batch, rows),
    )


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks every process to save; anything that this trainer, without a tokenizer, wrote would fail."""
    trainer = trainer_of(tmp_path, 4)
    monkeypatch.setattr(type(trainer.args), "should_save", False)
    trainer._save(str(tmp_path / "checkpoint"))
    trainer.save_best(validation=None)
    assert list(tmp_path.iterdir()) == []


def three_updates(folder: Path, size: int, sharding: str = "none") -> dict[str, Any]:
    trainer = trainer_of(folder, size, sharding)
    kind: Any = trainer.objective
    spy = Spy(kind)
    for callback in (spy, GradientNorms(trainer)):
        trainer.add_callback(callback)
    trainer.train()
    sharded = [name for name, weight in kind.named_parameters() if type(weight).__name__ == "DTensor"]
    moments = plain(trainer.optimizer).state
    state = [
        {part: whole_tensor(value) for part, value in moments[weight].items()} for weight in kind.trained().values()
    ]
    units = [part for part in trainer.model_wrapped.modules() if isinstance(part, FSDPModule)]
    weights = {plain_name(name): whole_tensor(weight.detach()).clone() for name, weight in kind.named_parameters()}
    names = ("loss", "grad_norm", "grad_backbone", *compare.TERMS)
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        "sharded": len(sharded),
        "units": len(units),
        "log": [{name: line[name] for name in names} for line in trainer.state.log_history if "loss" in line],
        "gradients": spy.found,
        "weights": weights,
        "moments": {f"{number}.{name}": value for number, one in enumerate(state) for name, value in one.items()},
    }


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for mine, theirs in zip(found["log"], wanted["log"], strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-6, abs=1e-4 if name == "loss" else 1e-6), name
    for mine, theirs in zip(
        [*found["gradients"], found["weights"], found["moments"]],
        [*wanted["gradients"], wanted["weights"], wanted["moments"]],
        strict=True,
    ):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-7, msg=f"{name} is off")


def test_two_processes_have_the_losses_gradients_and_weights_of_one(tmp_path: Path) -> None:
    """DDP, then shards. Accelerate would silently take DDP for shards on a CPU: so the wrapper's type is looked at.

    The two compute their batches in pieces, and not as many each.
    """

    def compute(rank: int) -> None:
        for sharding in WRAPPERS:
            torch.save(three_updates(tmp_path / str(rank), 2, sharding), tmp_path / f"rank{rank}-{sharding}.pt")

    wanted = three_updates(tmp_path / "one", 4)
    assert processes.forked(compute) == [0, 0]
    for rank in range(2):
        for sharding, wrapper in WRAPPERS.items():
            found = torch.load(tmp_path / f"rank{rank}-{sharding}.pt", weights_only=False)
            assert found["wrapper"] == wrapper
            assert found["sharded"] == (0 if sharding == "none" else len(found["weights"]))
            assert found["units"] == UNITS[sharding]
            assert_close(found, wanted)


# -- whole runs ------------------------------------------------------------------------------------------------------

SHORT = (
    "dataset.generator.train_size=18", "dataset.generator.val_size=4", "training.max_steps=7", "system.device=cpu",
    "system.num_workers=0", "logging.logging_steps=1", "logging.eval_steps=3", "logging.save_steps=2",
    "logging.report_to=[]", "evaluation.max_new_tokens=4",
)  # fmt: skip
TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
DOWN = ("projector.direction=teacher_to_student", "projector.dropout=0", "loss.alpha1_codi=1")
LAST = "checkpoint-step7"


def words_of(line: str) -> tuple[str, list[str]]:
    """A recipe and its settings."""
    teachers = [one for one in many.settings("llama", "gpt2") if one not in many.CHAINS] if "mix" in line else []
    routed = [
        "mixture.fusion=learnable",
        "mixture.router_dropout=0",
        "mixture.entropy=diverse",
        "mixture.per_layer=true",
    ]
    if line == "mixture of latents":
        return "embedded", [*teachers, *routed, "mixture.query=embedding", "loss.alpha1_codi=0"]
    if line == "mixture":
        return "explicit_embedded", [*teachers, *routed, "loss.alpha1_codi=0"]
    if line == "explicit":
        return "explicit_embedded", list(DOWN)
    alone = ["loss.student_ce=0", "loss.alpha1_codi=0", "loss.alpha2_kv=0"]
    return "debug", alone if line == "teacher alone" else []


def start(line: str, folder: Path, *words: str, count: int = 2) -> subprocess.Popen[str]:
    recipe, settings = words_of(line)
    fixed = ["train", "--config", recipe, "--output_dir", str(folder)]
    return processes.torchrun(*fixed, *settings, *SHORT, "training.batch_size=4", *words, count=count)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Finished runs, each made once: (line, processes, sharding)."""
    made: dict[tuple[str, int, str], Path] = {}

    def run(line: str, count: int = 2, sharding: str = "none") -> Path:
        if (line, count, sharding) not in made:
            folder = made[line, count, sharding] = tmp_path_factory.mktemp("runs") / "run"
            if count == 1:
                recipe, settings = words_of(line)
                train(load_recipe(recipe, [*settings, *SHORT, "training.batch_size=8"]), folder, quiet=True)
            else:
                processes.finish(start(line, folder, f"system.sharding={sharding}"))
        return made[line, count, sharding]

    return run


def journal(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_numbers(folder: Path, wanted: Path, weights: bool = True) -> None:
    """Every logged and validated number, and the weights, as far as the order of sums in float32 allows."""
    ours, theirs = (
        [line for line in journal(path) if "loss" in line or any(n.startswith("eval_") for n in line)]
        for path in (folder, wanted)
    )
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    health = ("latent_", "jacobi_", "kept_share")  # of the first process's examples
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            if name == "epoch":  # inside an epoch it counts micro-batches
                assert math.ceil(mine[name] - 1e-6) == math.ceil(value - 1e-6)
            elif not name.startswith(health):
                assert mine[name] == pytest.approx(value, rel=2e-3, abs=2e-3), (mine["step"], name)
    for place in (LAST, "best_checkpoint") if weights else ():
        for name in (WEIGHTS, FILE) if (wanted / place / FILE).exists() else (WEIGHTS,):
            mine_, theirs_ = (saved(path / place, name) for path in (folder, wanted))
            assert mine_.keys() == theirs_.keys()
            for key, value in theirs_.items():
                torch.testing.assert_close(
                    mine_[key], value, rtol=1e-2, atol=2e-3, equal_nan=True, msg=f"{place} {key}"
                )


def saved(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights in a folder's file, or in its shards."""
    return saved_weights(folder)[1] if name == WEIGHTS else load_file(folder / name)


def tree(folder: Path) -> set[str]:
    """The run's files; shards count as the weights in whose place they are."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {re.sub("shards/.*", WEIGHTS, name) for name in names}
    return {name for name in names if "rng_state" not in name}


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "sharding"),
    [("latent", "none"), ("latent", "fsdp2"), ("explicit", "none"), ("explicit", "fsdp2"), ("mixture", "none"),
     ("mixture", "fsdp2"), ("mixture", "fsdp2_whole"), ("mixture of latents", "none"), ("teacher alone", "none")],
)  # fmt: skip
def test_a_whole_run_is_that_of_one_process(line: str, sharding: str, runs: Any) -> None:
    one, two = runs(line, 1), runs(line, 2, sharding)
    assert_same_numbers(two, one)
    assert tree(two) == tree(one)
    meta = json.loads((two / "meta.json").read_text())
    assert (meta["processes"], meta["effective_batch_size"], meta["sharding"]) == (2, 8, sharding)
    alone = json.loads((one / "meta.json").read_text())
    assert (alone["processes"], alone["effective_batch_size"], alone["sharding"]) == (1, 8, "none")
    text = (two / "train.log").read_text()
    assert f"an update: 8 examples = 2 processes x 4 x 1 micro-batches, sharding {sharding}" in text
    said = [entry.partition(" ")[2].partition(" ")[2] for entry in text.splitlines()]
    assert max(Counter(entry for entry in said if entry.startswith("step ")).values()) == 1
    assert len(list((two / LAST).glob("rng_state_*.pth"))) == 2
    states = [torch.load(path / LAST / "optimizer.pt")["state"] for path in (two, one)]
    if sharding != "fsdp2":  # whose moments are in the shards
        assert [type(value) for part in states[0].values() for value in part.values()] == [
            type(value) for part in states[1].values() for value in part.values()
        ]
    if line.startswith("mixture"):
        assert [entry["step"] for entry in journal(two, "routing.jsonl")] == list(range(1, 8))


def shortened(run: Path, folder: Path, step: int) -> Path:
    """The run as if it had been killed behind its checkpoint of `step`."""
    shutil.copytree(run, folder)
    for place in folder.glob("checkpoint-*"):
        if json.loads((place / "trainer_state.json").read_text())["global_step"] > step:
            shutil.rmtree(place)
    meta = json.loads((folder / "meta.json").read_text()) | {"finished": False}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "sharding", "count"),
    [
        ("latent", "none", 1),
        ("latent", "fsdp2", 1),
        ("explicit", "fsdp2_whole", 1),
        ("mixture", "fsdp2", 1),
        ("mixture", "none", 1),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    line: str, sharding: str, count: int, runs: Any, tmp_path: Path
) -> None:
    """Two began it; in the middle of the second epoch one goes on, with the examples that are left."""
    whole = runs(line, 2, sharding)
    folder = shortened(whole, tmp_path / "run", 4)
    recipe = load_recipe(folder / "recipe.yaml")
    assert train(recipe, folder, resume="auto", quiet=True).exit_code == 0
    assert_same_numbers(folder, whole)
    text = (folder / "train.log").read_text()
    assert "going on with 1 processes of 4 examples x 2 micro-batches, so that an update has 8 examples" in text
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["processes"], meta["effective_batch_size"]) == (1, 8)


@pytest.mark.long
def test_what_one_process_began_two_go_on_with_in_shards(runs: Any, tmp_path: Path) -> None:
    """And with shards what DDP began: the files are the same."""
    whole = runs("explicit", 1)
    folder = shortened(whole, tmp_path / "run", 4)
    processes.finish(start("explicit", folder, "training.batch_size=8", "--resume", "auto"))
    assert_same_numbers(folder, whole)


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_term_to_the_agent_ends_in_a_checkpoint_and_the_rest_follows_bit_for_bit(sharding: str, tmp_path: Path) -> None:
    """Dropout is on: each process goes on drawing where it stopped."""
    words = (
        "lora.enabled=true",
        "lora.r=2",
        "lora.dropout=0.1",
        f"system.sharding={sharding}",
        "training.max_steps=20",
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    processes.finish(start("latent", whole, *words))
    process = start("latent", folder, *words)
    while process.poll() is None and not ((folder / "log.jsonl").exists() and len(journal(folder)) > 8):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = processes.finish(process, None)
    assert "SIGTERM: saving a checkpoint after this update" in said
    assert "stopped at update" in (folder / "train.log").read_text()
    assert not list(folder.glob(".partial*"))
    step = int(json.loads((folder / "meta.json").read_text())["steps"])
    assert 0 < step < 20
    processes.finish(start("latent", folder, *words, "--resume", "auto"))
    for place in ("checkpoint-step20", "best_checkpoint"):
        own, undisturbed = saved(folder / place, WEIGHTS), saved(whole / place, WEIGHTS)
        assert all(torch.equal(own[name], value) for name, value in undisturbed.items())
    ours, theirs = ([x for x in journal(path) if "loss" in x or "eval_accuracy" in x] for path in (folder, whole))
    assert ours == theirs


@pytest.mark.long
def test_a_stream_is_shared_out_too(tmp_path: Path) -> None:
    rows = [
        {"question": f"{a}+{b}?", "answer": f"<<{a}+{b}={a + b}>>\n#### {a + b}"} for a in range(8) for b in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = (f"dataset.name={tmp_path / 'rows.jsonl'}", "dataset.streaming=true", "dataset.drop_last_step=false",
            "dataset.val_size=0")  # fmt: skip
    given = [one for one in SHORT if not one.startswith("dataset.")]
    train(
        load_recipe("debug", [*given, *more, "training.batch_size=8", "training.max_steps=4"]),
        tmp_path / "one",
        quiet=True,
    )
    fixed = ["train", "--config", "debug", "--output_dir", str(tmp_path / "two")]
    process = processes.torchrun(*fixed, *given, *more, "training.batch_size=4", "training.max_steps=4")
    processes.finish(process)
    losses = [[line["loss"] for line in journal(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.long
def test_a_refusal_is_said_once_and_ends_all(tmp_path: Path, runs: Any) -> None:
    said = processes.finish(start("latent", runs("latent", 2)), None)
    assert said.count("already holds a run") == 1
