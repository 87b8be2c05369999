"""A stored teacher: a folder of its keys and values, made by `kava extract`.

    manifest.json                    the contents, the teacher and the data
    kv-00000-of-00200.safetensors    200 examples each (shards.py)
    index.json                       the examples' hashes in order; rebuilt from the shards if missing

Opening a store reads its manifest and requires every shard to exist. A process checks a shard's header when it first
reads from it, and an example's hash when it first reads the example; `verify` checks all of them.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.align.rope import Rotary
from kava.backbone.masks import positions
from kava.compress import compressor_of
from kava.config import Recipe
from kava.errors import CheckpointError, ConfigError, DataError
from kava.files import write_json
from kava.progress import track
from kava.teachers.base import TeacherKV, TeacherWants
from kava.teachers.live import before_rotary
from kava.teachers.manifest import RAW, Manifest, read_manifest, tokens_hash
from kava.teachers.shards import OPTIONAL, WITHOUT_COLUMNS, Shard, Torn, parts, shard_name

INDEX = "index.json"


class StoredTeacher:
    """A teacher whose entries are read from a store, in their stored dtype.

    If only some columns are stored, the others are zero and `only` marks the stored ones.
    """

    def __init__(self, folder: str | Path, progress: bool = True):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.shape = self.manifest.shape
        if missing := missing_shards(self.folder, self.manifest):
            raise CheckpointError(
                f"{self.folder} is not finished: {len(missing)} of {self.manifest.num_shards} shards are missing, the "
                f"first is {shard_name(self.manifest, missing[0])}",
                "start kava extract again: only what is missing is written",
            )
        hashes = _stored_hashes(self.folder)
        if hashes is None or len(hashes) != self.manifest.num_examples:
            hashes = _scan(self.folder, self.manifest, progress)
        self._row_of = {key: n for n, key in enumerate(hashes)}
        self._shards: dict[int, Shard] = {}

    @cached_property
    def rotary(self) -> Rotary | None:
        """The rotary embedding of the stored keys; None: not rotated."""
        self.refuse_shared_tokens()
        saved = self.manifest.rotary
        return None if saved is None else Rotary(torch.tensor(saved["inv_freq"]), saved["factor"], saved["limit"])

    def refuse_shared_tokens(self) -> None:
        """Refuses a store for a run with one teacher, which cannot serve a mixture."""
        if not self.manifest.own_tokenizer:
            raise ConfigError(
                f"the teacher store {self.folder} does not say how its keys were rotated: it was made for a run with one "
                "teacher",
                "extract again into another folder, with --teacher or --own_tokenizer",
            )

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        manifest = self.manifest
        _refuse_what_is_not_stored(self.folder, manifest, wants)
        device, host = batch["question"].device, {name: value.cpu() for name, value in batch.items()}
        num, width = host["cot_mask"].shape
        tensors = parts(manifest, width)
        optional = [name for name in OPTIONAL if getattr(wants, name)]
        whole: dict[str, Tensor] = {}  # of all examples: [L, B, ...]
        for name in ("k", "v", *optional):
            dtype, (num_layers, *rest) = tensors[name]
            whole[name] = torch.zeros(num_layers, num, *rest, dtype=getattr(torch, dtype))
        only = torch.zeros(num, width, dtype=torch.bool)
        for b in range(num):
            stored = self._example(host, b)
            columns = host["cot_mask"][b].nonzero()[:, 0][stored["columns"].long()]
            for name, entries in whole.items():
                if name in WITHOUT_COLUMNS:
                    entries[:, b] = stored[name]
                else:
                    entries[:, b].index_copy_(2, columns, stored[name])
            only[b, columns] = True
        layers = {name: list(entries.to(device).unbind(0)) for name, entries in whole.items()}
        if not wants.rotary:
            position = positions(batch["cot_mask"], batch["question_mask"].sum(1))
            layers["k"] = before_rotary(layers["k"], self.rotary, position)
        return TeacherKV(
            keys=layers["k"],
            values=layers["v"],
            importance=layers.get("importance"),
            only=None if manifest.method == RAW else only.to(device),
            **{name: torch.stack(layers[name], dim=1) for name in optional if name in WITHOUT_COLUMNS},
        )

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a recipe that needs other columns than those stored. A raw store serves every recipe."""
        stored = self.manifest
        if stored.method == RAW:
            return
        hint = "change the recipe, or extract with --kv_method raw"
        explicit, rkv = recipe.explicit, recipe.rkv
        needs = {
            "explicit.choose=head (it holds one choice per sample)": explicit.choose == "head",
            "explicit.cka_weight (CKA reads every column)": explicit.cka_weight > 0,
            "loss.kv_loss_type=structural (attention maps have every column)": recipe.loss.kv_loss_type == "structural",
        }
        for what, is_needed in needs.items():
            if is_needed:
                raise ConfigError(f"the teacher store {self.folder} cannot serve {what}", hint)
        if ":" in stored.method and stored.method != rkv.method:  # a class that only the store names is not imported
            raise ConfigError(
                f"the teacher store {self.folder} holds columns chosen by {stored.method}, the recipe asks for {rkv.method}",
                hint,
            )
        used = stored.compressor
        needed = compressor_of(rkv)
        if used != needed or stored.target_len != explicit.target_len:
            raise ConfigError(
                f"the teacher store {self.folder} holds {stored.target_len} columns chosen by {used}, the recipe asks "
                f"for {explicit.target_len} by {needed}",
                hint,
            )

    def _example(self, host: dict[str, Tensor], b: int) -> dict[str, Tensor]:
        """The stored tensors of one row of a batch, after checking that they are of the same text."""
        key = int(host["example_id"][b])
        n = self._row_of.get(key)
        if n is None:
            raise DataError(
                f"the teacher store {self.folder} has no example {key} (a hash of its id)",
                "extract with the dataset settings of this run (subset_size, max_length, val_size, seed)",
            )
        number, row = divmod(n, self.manifest.examples_per_shard)
        if number not in self._shards:
            self._shards[number] = Shard(self.folder, self.manifest, number)
        shard = self._shards[number]
        entry = shard.entries[row]
        if entry.key != key:
            raise CheckpointError(
                f"{self.folder / INDEX} does not fit {shard.path.name}", "delete it: it is made again"
            )
        length = int(host["cot_mask"][b].sum())
        if length != entry.length or _tokens(host, b) != entry.tokens:
            what = f"{length} tokens, {entry.length} in the store" if length != entry.length else "other tokens"
            raise DataError(
                f"example {entry.id} is not the text that the teacher store {self.folder} was made of: its chain of "
                f"thought or its surroundings have {what}",
                "tokenizer, dataset.cot_type, drop_last_step, prompt and data must be those of kava extract",
            )
        return shard.read(row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # every process opens its own


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    return [k for k in range(manifest.num_shards) if not (folder / shard_name(manifest, k)).is_file()]


def write_index(folder: Path, manifest: Manifest) -> None:
    """Writes index.json from the headers of all shards."""
    write_json(folder / INDEX, {"hashes": _scan(folder, manifest, progress=False)})


def verify(folder: str | Path, progress: bool = True) -> list[str]:
    """The problems of a store, one line each, after checking every header, every hash and the index."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems: list[str] = []
    hashes: list[int] = []
    for k in track(range(manifest.num_shards), "verifying", unit="shards", show=progress):
        try:
            shard = Shard(folder, manifest, k)
        except CheckpointError as error:
            problems.append(error.message)
            continue
        hashes += [entry.key for entry in shard.entries]
        for row in range(len(shard.entries)):
            try:
                shard.read(row)
            except Torn as error:
                problems.append(error.message)
    index = _stored_hashes(folder)
    if not problems and index != hashes:
        problems.append(f"{folder / INDEX} is {'missing' if index is None else 'not that of the shards'}")
    return problems


def _refuse_what_is_not_stored(folder: Path, manifest: Manifest, wants: TeacherWants) -> None:
    if wants.question == "first":
        raise ConfigError(
            f"the store {folder} holds the mean of a question's values, but mixture.prototype=cls wants the first token's",
            "set mixture.prototype=mean, or read this teacher live",
        )
    for what in OPTIONAL:
        if getattr(wants, what) and not getattr(manifest, f"with_{what}"):
            raise ConfigError(
                f"this run needs the teacher's {what}, which the store {folder} does not have",
                f"extract again into another folder with --with_{what}",
            )


def _tokens(host: dict[str, Tensor], b: int) -> str:
    return tokens_hash(*(host[name][b][host[f"{name}_mask"][b]].tolist() for name in ("question", "cot", "tail")))


def _stored_hashes(folder: Path) -> list[int] | None:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [int(key) for key in index["hashes"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # the shards have the same hashes
        return None


def _scan(folder: Path, manifest: Manifest, progress: bool) -> list[int]:
    shards = track(range(manifest.num_shards), "index", unit="shards", show=progress)
    return [entry.key for k in shards for entry in Shard(folder, manifest, k).entries]
