"""`kava memory` against what is held: torch's own record of allocations, and the memory of whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import measured_memory
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compare import tiny_base
from kava.backbone.load import build_model, load_teacher, load_tokenizer, locate
from kava.cli.main import main
from kava.config import Recipe, load_recipe
from kava.data.collate import Collator
from kava.data.cut import cut
from kava.data.encode import Encoded
from kava.lab.bench.timing import peak_memory
from kava.lab.memory.estimate import AUTOCAST, UNLOGGED, MemoryEstimate, estimate, per_process
from kava.lab.memory.sizes_only import SizesOnly
from kava.losses import add
from kava.objective.make import make_objective
from kava.teachers.live import LiveTeacher
from kava.training.data import MemoryData, load_data
from zoo_tokenizers import byte_level

CPU = torch.device("cpu")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
BUDGET = 60  # tokens of a piece: the six rows below are several
LENGTHS = ["--question", "9", "--cot", "12", "--answer", "2"]
LARGE = {  # recipe, rows, words, settings: models of 0.6 GiB
    "all weights": ("embedded", 2, 20, ()),
    "all weights, 4 rows": ("embedded", 4, 20, ()),
    "lora": ("embedded", 8, 30, ("lora.enabled=true", "lora.r=16")),
    "bfloat16": ("embedded", 4, 20, ("model.dtype=bfloat16",)),
    "a separate teacher": ("explicit_embedded", 4, 20, ("lora.enabled=true", "lora.r=16", "teacher.name={base}")),
}


def uneven(count: int) -> list[Encoded]:
    cue = [4, 5, 6]
    return [
        Encoded(f"row/{i}", [7] * (5 + i), [8] * (6 + 2 * i), [i % 2 == 0] * (6 + 2 * i), cue, [9], 1)
        for i in range(count)
    ]


def held(recipe: Recipe, rows: list[Encoded]) -> int:
    """Weights, and the largest sum of tensors that two real updates allocate, by torch's profiler."""
    model, tokenizer = build_model(recipe)
    teacher = LiveTeacher(load_teacher(recipe, tokenizer, CPU)) if recipe.explicit.enabled else None
    objective = make_objective(recipe, model, teacher).train()
    modules = [objective] if teacher is None else [objective, teacher.model]
    weights = {id(weight): weight for module in modules for weight in (*module.parameters(), *module.buffers())}
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    batch, autocast = Collator(0)(rows), AUTOCAST.get(recipe.system.mixed_precision)
    counts = objective.counts(batch, UNLOGGED)

    def updates() -> None:
        optimizer = torch.optim.AdamW(trained, foreach=False)
        for _ in range(2):
            for piece in cut(batch, BUDGET) * recipe.training.gradient_accumulation_steps:
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    loss = add(objective(piece, UNLOGGED).terms, counts)
                loss.backward()
                del loss
            optimizer.step()
            objective.zero_grad(set_to_none=True)

    peak = peak_memory(updates, CPU)
    assert peak is not None
    return peak + sum(weight.numel() * weight.element_size() for weight in weights.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


SETTINGS = {
    "latent": ("embedded", ("latent.num_tokens=4", "rkv.method=rkv", "loss.alpha1_codi=1")),
    "lora": ("embedded", ("lora.enabled=true", "lora.r=4", "training.gradient_accumulation_steps=2")),
    "checkpointing": ("embedded", ("training.gradient_checkpointing=true",)),
    "autocast": ("embedded", ("system.mixed_precision=bf16",)),
    "explicit": ("explicit_embedded", ("teacher.name={base}",)),
}


@pytest.mark.parametrize(
    "name", ["latent", *(pytest.param(name, marks=pytest.mark.long) for name in SETTINGS if name != "latent")]
)
def test_an_update_without_numbers_holds_what_a_real_one_holds(name: str, base: Path) -> None:
    config, settings = SETTINGS[name]
    words = [
        f"model.name={base}",
        f"training.tokens_per_piece={BUDGET}",
        *(setting.format(base=base) for setting in settings),
    ]
    recipe, rows = load_recipe(config, words), uneven(6)
    estimated = estimate(recipe, rows)
    assert estimated.total == pytest.approx(held(recipe, rows), rel=0.15)
    assert estimated.parts["weights"] > 0
    assert estimated.parts["optimizer"] >= 8 * estimated.trained
    assert (estimated.parts["teacher"] > 0) == recipe.explicit.enabled


def test_sizes_only_computes_lengths_but_no_numbers() -> None:
    with SizesOnly() as mode:
        mask = torch.tensor([True, False, True])
        large = torch.zeros(3, 1 << 40)  # 12 TiB
        chosen = large[mask]
        assert chosen.shape == (2, 1 << 40)
        assert int(mask.sum()) == 2
        assert mask.nonzero().tolist() == [[0], [2]]
        assert mode.ledger.peak >= 5 * (4 << 40)
        del large
        assert mode.ledger.held["activations"] < 3 * (4 << 40)


def test_the_verb_reads_no_weights(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a config and a tokenizer is enough; shards divide what is trained."""
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["memory", "--config", "embedded", f"model.name={tmp_path}", "--batch_size", "2", *LENGTHS]
    words.append("latent.num_iterations=1")
    assert main([*words, "--quiet"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["total_bytes"] == sum(alone["bytes"].values())
    assert (alone["batch_size"], alone["tokens"]) == (2, {"question": 9, "cot": 12, "answer": 2})
    settings = [change["setting"] for change in alone["changes"]]
    assert alone["largest"] in ("activations", "training state")
    assert settings
    assert all(change["saves_bytes"] > 0 for change in alone["changes"])


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "optimizer"),
    [("none", 1000, 1600, 1600), ("fsdp2", 700, 400, 800), ("fsdp2_whole", 1000, 400, 800)],
)
def test_processes_hold_all_or_a_share(sharding: str, weights: int, gradients: int, optimizer: int) -> None:
    """DDP has buckets as large as the gradients; layer by layer a shard and two units of 100 bytes are held."""
    parts = {"weights": 1000, "gradients": 800, "optimizer": 1600, "activations": 300}
    alone = MemoryEstimate(parts, trained=200, whole=250, unit=100)
    recipe = load_recipe("embedded", [f"system.sharding={sharding}"])
    of_two = per_process(recipe, alone, 2).parts
    assert of_two == {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": 300}
    assert per_process(recipe, alone, 1) == alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--question", "9"], "lengths come together"),
        (["--gpus", "0"], "gpus"),
        (["--config", "multi_teacher_embedded"], "several teachers is not estimated"),
        (["model.name=/no/such/folder"], "no such folder"),
        (["dataset.name=x.jsonl"], "x.jsonl"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = [] if "--config" in words else ["--config", "embedded"]
    lengths = LENGTHS if "multi_teacher_embedded" in words else []
    assert main(["memory", *first, *lengths, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.6 GiB in float32."""
    folder, tokenizer = tmp_path_factory.mktemp("large"), byte_level()
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000, num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **sizes,
        )
    )  # fmt: skip
    assert 4 * sum(weight.numel() for weight in lm.parameters()) > 2**29
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("name", LARGE)
def test_processes_hold_what_was_estimated(name: str, large: Path) -> None:
    """Within 15 %, minus what the imports take."""
    config, count, words, more = LARGE[name]
    settings: list[Any] = [
        f"model.name={large}", f"training.batch_size={count}", "training.max_steps=3", "logging.report_to=[]",
        "system.device=cpu", *(setting.format(base=large) for setting in more),
    ]  # fmt: skip
    if config == "embedded":
        settings += ["latent.num_tokens=4", "rkv.method=rkv", "evaluation.max_new_tokens=1"]
    command = [sys.executable, measured_memory.__file__, config, str(count), str(words), *settings]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = measured_memory.rows(count, words)
    memory = MemoryData(data, data[:1])
    recipe = memory.recipe(load_recipe(config, settings))
    tokenizer = load_tokenizer(locate(recipe.model.name, None), recipe.model)
    rows = list(load_data(recipe, tokenizer, memory).train)
    assert estimate(recipe, rows).total == pytest.approx(int(done.stdout.splitlines()[-1]), rel=0.15)
