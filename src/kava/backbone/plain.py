"""A student as an ordinary model of its family: adapters folded in, in safetensors, for programs that know transformers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from kava.backbone.artifact import without_trained_weights
from kava.backbone.custom_generate import never_run
from kava.backbone.model import LatentModel
from kava.backbone.tokens import save_tokenizer
from kava.config import Recipe
from kava.errors import RunError
from kava.files import usual_mode

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def merge(model: LatentModel) -> Any:
    """The causal LM of the student after its adapters were merged into the weights, in place."""
    if hasattr(model.backbone, "merge_and_unload"):
        model.backbone = model.backbone.merge_and_unload()
    return model.backbone


def save_plain(
    model: LatentModel, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None, **generation: Any
) -> None:
    """Saves the student for AutoModelForCausalLM.from_pretrained(folder). Merges its adapters and casts it in place.

    `generation`: the fields of generation_config.json, in place of all that the base model has.
    """
    lm = merge(model)
    if dtype is not None:
        lm.to(dtype)
    if generation:
        lm.generation_config = GenerationConfig(**generation)
    lm.config.use_cache = True
    lm.save_pretrained(folder)
    lm.config.use_cache = False
    for file in folder.glob("*.safetensors"):
        usual_mode(file)
    save_tokenizer(tokenizer, folder)


def plain_bytes(folder: Path, recipe: Recipe, dtype: torch.dtype | None) -> tuple[int, int]:
    """Bytes of the weights that `save_plain` would write for the student in `folder`, and its width; from config.json."""
    with torch.device("meta"):
        lm, _ = without_trained_weights(folder, recipe)
    weights = list(lm.parameters())  # tied ones once
    return sum(weight.numel() * (dtype or weight.dtype).itemsize for weight in weights), lm.config.hidden_size


def stored_names(folder: Path) -> dict[str, list[str]]:
    """The names of the tensors in each of a plain model's files of weights."""
    files = [SINGLE]
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    names: dict[str, list[str]] = {}
    for file in files:
        with safe_open(folder / file, "pt") as stored:
            names[file] = sorted(stored.keys())
    return names


def check_plain(lm: Any, folder: Path) -> int:
    """Reads the saved weights back: every tensor of `lm` is stored exactly once, bit by bit. Returns their number."""
    expected: dict[str, Tensor] = dict(lm.state_dict())
    tied: dict[Any, list[str]] = {}
    for name, tensor in expected.items():
        tied.setdefault((tensor.data_ptr(), tensor.shape), []).append(name)
    compared: dict[str, str] = {}
    for file, name, tensor in _stored(folder):
        where = f"{file}: {name}"
        if name not in expected:
            raise RunError(f"{where} is no weight of the model", "this is a fault of the export: report it")
        if name in compared:
            raise RunError(f"{where} is stored twice, also in {compared[name]}", "report it")
        if tensor.dtype != expected[name].dtype or not torch.equal(tensor, expected[name].cpu()):
            raise RunError(f"{where} was not stored as it is", "is the disk sound? export again")
        compared[name] = file
    for names in tied.values():
        if (written := sum(name in compared for name in names)) != 1:
            problem = "was not stored" if written == 0 else "is stored more than once"
            raise RunError(f"{folder.name}: {names[0]} {problem}", "this is a fault of the export: report it")
    return len(compared)


def _stored(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    for file, names in stored_names(folder).items():
        with safe_open(folder / file, "pt") as stored:
            for name in names:
                yield file, name, stored.get_tensor(name)


def load_exported(folder: Path) -> Any:
    """The model that transformers alone makes of a folder; every weight must be in it. None of the folder's code runs."""
    with never_run():
        lm, info = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, dtype="auto"
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, _named(info, kind))):
            raise RunError(f"{folder.name}: transformers says {kind} {', '.join(names[:3])}", "report it")
    return lm.eval()


def _named(info: Mapping[str, Any], kind: str) -> list[Any]:
    return list(info.get(kind) or ())
