"""Models on this machine, found without a network: in KAVA_MODEL_PATH, or in the hub's cache (`kava assets fetch`)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from kava.files import looks_like_path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
MODEL_PATH = "KAVA_MODEL_PATH"


def own_copy(name: str, gguf_file: str | None = None) -> Path | None:
    """The folder of a hub model in KAVA_MODEL_PATH, as ORG/NAME or NAME; None without one, or if `name` is a path."""
    place = os.environ.get(MODEL_PATH)
    if not place or looks_like_path(name) or Path(name).exists():
        return None
    folders = (Path(place).expanduser() / part for part in dict.fromkeys((name, name.rpartition("/")[2])) if part)
    return next((folder.absolute() for folder in folders if (folder / (gguf_file or "config.json")).is_file()), None)


def cached(name: str, revision: str | None, gguf_file: str | None = None) -> Path | None:
    """The snapshot folder of a model in the hub's cache; None if config, tokenizer or weights are missing."""
    if Path(name).exists():
        return None
    try:
        config = try_to_load_from_cache(name, gguf_file or "config.json", revision=revision)
    except HFValidationError:  # a path that does not exist: loading it fails with a clear error
        return None
    if not isinstance(config, str):
        return None
    if gguf_file is not None:
        return Path(config.removesuffix(gguf_file))
    folder = Path(config).parent
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZERS)
    return folder if has_tokenizer and weights_problem(folder) is None else None


def weights_problem(folder: Path, gguf_file: str | None = None) -> str | None:
    """Why the weights in a model's folder cannot be loaded, judged by file names and headers; None if they can."""
    if gguf_file is not None:
        return gguf_problem(folder, gguf_file)
    for name in ("model.safetensors", "pytorch_model.bin"):  # in transformers' order
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _files_problem(folder, [name])
        if index.is_file():
            try:
                named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, KeyError, AttributeError) as error:
                return f"{index.name} is torn ({error})"
            return _files_problem(folder, sorted(set(named)))
    return "there are no weights (model.safetensors, or its index)"


def gguf_problem(folder: Path, file: str) -> str | None:
    """Why a .gguf file of a model's folder cannot be read, judged by its name; None if it can."""
    if (folder / file).is_file():
        return None
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
    return f"there is no {file}; .gguf files there: {', '.join(names) or 'none'}"


def cached_gguf_problem(name: str, revision: str | None, file: str) -> str | None:
    """The same for a model in the hub's cache; None if it is not there at all."""
    try:
        return gguf_problem(Path(snapshot_download(name, revision=revision, local_files_only=True)), file)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _files_problem(folder: Path, names: Sequence[str]) -> str | None:
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        return f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(folder / name, framework="np") as file:  # checks the length in its header
                file.keys()
        except (SafetensorError, OSError) as error:
            return f"{name} is torn ({error})"
    return None
