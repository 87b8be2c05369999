"""What a machine without a network has after a download, in miniature: the recipes' models under their real names in a
hub cache, and the data sets of the paper under ./datasets in their real schemas.

    root/hub/models--meta-llama--Llama-3.2-1B-Instruct/{refs/main, snapshots/<sha>/...}
    root/datasets/{gsm8k-aug, gsm8k-aug-nl, gsm8k, gsm8k-hard, svamp}
    root/data/gsm8k_train.jsonl

`build(root)` writes it, `environment(root)` is what a process needs to see it (with `root` as working folder), and
`enter(root, monkeypatch)` does the same for this process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from kava.backbone.artifact import write_student
from kava.backbone.families import family_of
from kava.backbone.load import assemble
from kava.config import load_recipe
from many import joined
from zoo_tokenizers import bos, byte_level

SHA = "0123456789abcdef0123456789abcdef01234567"
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True, "dtype": "bfloat16",
    "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
MODELS = {
    "meta-llama/Llama-3.2-1B-Instruct": (LlamaForCausalLM, LlamaConfig, bos, {"bos_token_id": 2}),
    "meta-llama/Llama-3.2-3B-Instruct": (
        LlamaForCausalLM,
        LlamaConfig,
        bos,
        {"bos_token_id": 2, "num_hidden_layers": 3},
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": (Qwen2ForCausalLM, Qwen2Config, byte_level, {"bos_token_id": None}),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        Qwen2ForCausalLM,
        Qwen2Config,
        byte_level,
        {"bos_token_id": None, "hidden_size": 64, "num_hidden_layers": 3},
    ),
    "Qwen/Qwen2.5-7B-Instruct": (Qwen2ForCausalLM, Qwen2Config, byte_level, {"bos_token_id": None}),
}
GPT2 = {"vocab_size": 440, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48, "n_positions": 1024}
TEACHERS = {
    "gpt2": GPT2,
    "gpt2-medium": GPT2 | {"n_embd": 48, "n_layer": 3},
    "gpt2-large": GPT2 | {"n_embd": 64, "n_head": 8},
}
RECIPES = ("llama1b_aug", "llama1b_aug_nl", "qwen05b_aug", "qwen05b_aug_nl", "llama3b_aug", "llama3b_aug_nl")
TEST_ROWS = 12


def build(root: Path) -> Path:
    """The cache and the data sets under `root`."""
    for name, (model, config, tokenizer, extra) in MODELS.items():
        _model(root / "hub", name, model(config(vocab_size=400, **(SHAPE | extra))), tokenizer())
    for name, config in TEACHERS.items():
        special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        _model(root / "hub", name, GPT2LMHeadModel(GPT2Config(**config, **special)), joined())
    _datasets(root / "datasets")
    rows = [_gsm8k(problem) for problem in problems(48)]
    exported = [{"prompt": row["question"], "target": row["answer"]} for row in rows]
    _jsonl(root / "data" / "gsm8k_train.jsonl", exported)
    return root


def environment(root: Path) -> dict[str, str]:
    """For a process that runs in `root`."""
    return {
        "HF_HOME": str(root),
        "HF_HUB_CACHE": str(root / "hub"),
        "HF_DATASETS_CACHE": str(root / "datasets_cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def enter(root: Path, monkeypatch) -> Path:
    """This process, whose hub library has long read its environment, looks into `root` only, and works there."""
    import datasets
    import huggingface_hub

    monkeypatch.chdir(root)
    for name, value in environment(root).items():  # for the processes that it starts
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "datasets_cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return root


def tiny_student(folder: Path, settings: Sequence[str] = (), recipe: str = "debug") -> Path:
    """A student's folder with every weight in it, nothing of it trained."""
    made = load_recipe(recipe, ["lora.enabled=false", "evaluation.max_new_tokens=8", *settings])
    torch.manual_seed(3)
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=400, **(SHAPE | {"bos_token_id": 2, "dtype": "float32"})))
    for weight in lm.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    tokenizer = copy.deepcopy(bos())  # special tokens are added to it
    model = assemble(lm, family_of(lm.config, "tiny"), tokenizer, made)
    write_student(model, tokenizer, made, folder)
    return folder


def without_hashes(folder: Path, **facts: Any) -> Path:
    """Makes a student one of a version that did not hash its files; `facts` are put into its card."""
    path = folder / "kava.json"
    hashes = ("files", "training_state", "sha256")
    card = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in hashes}
    path.write_text(json.dumps(card | facts), encoding="utf-8")
    return folder


def _model(hub: Path, name: str, model, tokenizer) -> None:
    repo = hub / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / SHA
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.to(torch.bfloat16).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(SHA)


def problems(count: int, first: int = 0) -> list[dict]:
    """Word problems as both forms of steps need them, all different."""
    made = []
    for i in range(first, first + count):
        a, b, c = i + 3, i % 7 + 2, i % 5 + 1
        made.append(
            {
                "question": f"Ann buys {a} bags of {b} apples and eats {c} apples. How many are left?",
                "equations": [f"<<{a}*{b}={a * b}>>", f"<<{a * b}-{c}={a * b - c}>>"],
                "sentences": [f"She has {a} * {b} = {a * b} apples.", f"{a * b} - {c} = {a * b - c} are left."],
                "answer": str(a * b - c),
            }
        )
    return made


def _datasets(folder: Path) -> None:
    sizes = {"train": (48, 0), "validation": (10, 100), "test": (TEST_ROWS, 200)}
    aug = {s: [_aug(p, "equations") for p in problems(*size)] for s, size in sizes.items()}
    nl = {s: [_aug(p, "sentences") for p in problems(*size)] for s, size in sizes.items()}
    for split, rows in aug.items():
        _jsonl(folder / "gsm8k-aug" / f"{split}.jsonl", rows)
    _save_to_disk(folder / "gsm8k-aug-nl", nl)
    for split in ("train", "test"):
        _jsonl(folder / "gsm8k" / f"{split}.jsonl", [_gsm8k(p) for p in problems(*sizes[split])])
    _jsonl(folder / "gsm8k-hard" / "gsmhardv2.jsonl", [_hard(p) for p in problems(TEST_ROWS, 5000)])
    _save_to_disk(folder / "svamp", {s: [_svamp(p) for p in problems(*sizes[s])] for s in ("train", "test")})


def _aug(problem: dict, steps: str) -> dict:
    return {"question": problem["question"], "steps": problem[steps], "answer": problem["answer"]}


def _gsm8k(problem: dict) -> dict:
    lines = [f"{s} {e}" for s, e in zip(problem["sentences"], problem["equations"], strict=True)]
    return {"question": problem["question"], "answer": "\n".join([*lines, f"#### {problem['answer']}"])}


def _hard(problem: dict) -> dict:
    code = f"def solution():\n    return {problem['answer']}\n"
    return {"input": problem["question"], "code": code, "target": float(problem["answer"])}


def _svamp(problem: dict) -> dict:
    body, _, question = problem["question"].partition(". ")
    return {"ID": "chal-1", "Body": body + ".", "Question": question, "Equation": "( 1.0 )",
            "Answer": float(problem["answer"]), "Type": "Subtraction"}  # fmt: skip


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _save_to_disk(path: Path, splits: dict[str, list[dict]]) -> None:
    import datasets

    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(
        str(path)
    )
