"""Weights and optimizer moments of a checkpoint in the folder shards/, one file per process that wrote it
(torch.distributed.checkpoint). Any number of processes, or one, reads them."""

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from kava.backbone.card import SHARDS, TORN, file_hash
from kava.errors import CheckpointError, first_line

INDEX = ".metadata"  # torch's table of what is in which file
FORMATS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
OTHERS = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Writes them into folder/shards, and returns the sha256 of each file there; all processes call it together."""
    place, rank = folder / SHARDS, distributed.get_rank()
    checkpoint.save(dict(tensors), storage_writer=checkpoint.FileSystemWriter(str(place)))
    own = [path for path in place.iterdir() if path.name.startswith(f"__{rank}_") or (rank == 0 and path.name == INDEX)]
    hashes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(hashes, {path.name: file_hash(path) for path in sorted(own)})
    return {name: value for part in hashes for name, value in part.items()}


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fills the tensors, whole ones or this process's shards of them; each process reads for itself."""
    with _naming(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        checkpoint.load(dict(into), storage_reader=_Reader(str(folder / SHARDS)), no_dist=True)


def listed(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor by name."""
    with _naming(folder):
        index = _Reader(str(folder / SHARDS)).read_metadata().state_dict_metadata
    if strange := [name for name, entry in index.items() if not isinstance(entry, TensorStorageMetadata)]:
        raise CheckpointError(f"{folder / SHARDS}: {strange[0]} is no tensor", TORN)
    return {name: (entry.size, entry.properties.dtype) for name, entry in index.items()}  # type: ignore[union-attr]


class _Index(pickle.Unpickler):
    """Reads torch's table; a pickle of anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = module in FORMATS or (module, name) in OTHERS
        if not allowed and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            raise pickle.UnpicklingError(f"{INDEX} asks for {module}.{name}")
        return super().find_class(module, name)


class _Reader(checkpoint.FileSystemReader):
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        file: IO[bytes]
        with open(Path(self.path) / INDEX, "rb") as file:
            index = _Index(file).load()
        if not isinstance(index, Metadata) or index.storage_data is None:
            raise pickle.UnpicklingError(f"{INDEX} is no table of tensors")
        return index


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns an error about a file that is missing, torn or no such file into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        checkpoint.CheckpointException, OSError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError,
        AttributeError, IndexError, TypeError,
    ) as error:  # fmt: skip
        failures = error.failures if isinstance(error, checkpoint.CheckpointException) else {}
        cause = next((failure for failure, _ in failures.values()), error)
        problem = f"{folder / SHARDS} cannot be read ({first_line(cause)[:150]})"
        raise CheckpointError(problem, "the folder is torn: delete it, --resume auto takes the one before") from error
