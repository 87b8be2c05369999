"""A folder of a teacher's keys and values, made by `kava extract`, in place of the teacher.

    manifest.json                    what is stored, and of which teacher and data
    kv-00000-of-00200.safetensors    200 examples each (shards.py)
    index.json                       the examples' hashes in order; made again from the shards where it is missing

When a store is opened its manifest is read and every shard must be there. A shard's header is checked when the first
example of it is read in a process, an example's hash when it is first read; `verify` checks all of them.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.align.rope import Rotary
from kava.backbone.masks import positions
from kava.compress import make_compressor
from kava.config import Recipe
from kava.data.example import stable_hash
from kava.data.progress import progress_bar
from kava.errors import CheckpointError, ConfigError, DataError
from kava.files import write_json
from kava.teachers.base import KVShape, TeacherKV, TeacherWants
from kava.teachers.live import before_rotary
from kava.teachers.manifest import RAW, Manifest, read_manifest, tokens_hash
from kava.teachers.shards import Entry, Shard, Torn, shard_name

INDEX = "index.json"


class StoredTeacher:
    """A teacher that has read everything before. Numbers come in the type that they are stored in.

    Where only some columns are stored, the others are zero and `only` marks the stored ones.
    """

    def __init__(self, folder: str | Path, progress: bool = True):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        missing = missing_shards(self.folder, self.manifest)
        if missing:
            raise CheckpointError(
                f"{self.folder} is not finished: {len(missing)} of {self.manifest.num_shards} shards are missing, the "
                f"first is {shard_name(self.manifest, missing[0])}",
                "start kava extract again: only what is missing is written",
            )
        self._places = _read_index(self.folder, self.manifest, progress)
        self._shards: dict[int, Shard] = {}

    @property
    def shape(self) -> KVShape:
        return self.manifest.shape

    @cached_property
    def rotary(self) -> Rotary | None:
        """How the stored keys are rotated; None: not at all."""
        self.refuse_shared_tokens()
        kept = self.manifest.rotary
        return None if kept is None else Rotary(torch.tensor(kept["inv_freq"]), kept["factor"], kept["limit"])

    def refuse_shared_tokens(self) -> None:
        """A store for a run with one teacher cannot serve a mixture."""
        if not self.manifest.own_tokenizer:
            raise ConfigError(
                f"the teacher store {self.folder} does not say how its keys were rotated: it was made for a run with one "
                "teacher",
                "extract again into another folder, with --teacher or --own_tokenizer",
            )

    def __call__(self, batch: dict[str, Tensor], wants: TeacherWants) -> TeacherKV:
        manifest = self.manifest
        _refuse_what_is_not_stored(self.folder, manifest, wants)
        home, host = batch["question"].device, {name: value.cpu() for name, value in batch.items()}
        num, columns = host["cot_mask"].shape
        shape, dtype = manifest.shape, getattr(torch, manifest.dtype)
        per_head = (shape.num_layers, num, shape.num_heads, columns)
        keys, values = (torch.zeros(*per_head, shape.head_size, dtype=dtype) for _ in "kv")
        looked = torch.zeros(per_head) if wants.importance else None
        cue = torch.zeros(num, shape.num_layers, shape.hidden_size, dtype=dtype) if wants.cue else None
        asked = torch.zeros(num, shape.num_layers, shape.layer_size, dtype=dtype) if wants.question else None
        only = None if manifest.method == RAW else torch.zeros(num, columns, dtype=torch.bool)
        for b in range(num):
            found = self._example(host, b)
            place = host["cot_mask"][b].nonzero()[:, 0][found["columns"].long()]
            keys[:, b].index_copy_(2, place, found["k"])
            values[:, b].index_copy_(2, place, found["v"])
            if looked is not None:
                looked[:, b].index_copy_(2, place, found["importance"])
            if cue is not None:
                cue[b] = found["cue"]
            if asked is not None:
                asked[b] = found["question"]
            if only is not None:
                only[b, place] = True
        shown = list(keys.to(home).unbind(0))
        if not wants.rotary:
            place = positions(batch["cot_mask"], batch["question_mask"].sum(1))
            shown = before_rotary(shown, self.rotary, place)
        return TeacherKV(
            keys=shown,
            values=list(values.to(home).unbind(0)),
            importance=None if looked is None else list(looked.to(home).unbind(0)),
            cue=None if cue is None else cue.to(home),
            only=None if only is None else only.to(home),
            question=None if asked is None else asked.to(home),
        )

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a run that asks for other columns than those stored. A raw store serves every recipe."""
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
        for what, asked in needs.items():
            if asked:
                raise ConfigError(f"the teacher store {self.folder} cannot serve {what}", hint)
        chosen = stored.compressor
        wanted = make_compressor(rkv.method, lambda_=rkv.lambda_, side=rkv.crop_keep)
        if chosen != wanted or stored.target_len != explicit.target_len:
            raise ConfigError(
                f"the teacher store {self.folder} holds {stored.target_len} columns chosen by {chosen}, the recipe asks "
                f"for {explicit.target_len} by {wanted}",
                hint,
            )

    def _example(self, host: dict[str, Tensor], b: int) -> dict[str, Tensor]:
        """The stored tensors of one row of a batch, once it is sure that they are of the same text."""
        key = int(host["example_id"][b])
        n = self._places.get(key)
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
        if stable_hash(entry.id) != key:
            raise CheckpointError(
                f"{self.folder / INDEX} does not fit {shard.path.name}", "delete it: it is made again"
            )
        length = int(host["cot_mask"][b].sum())
        if length != entry.length or _tokens(host, b) != entry.tokens:
            what = f"{length} tokens, {entry.length} in the store" if length != entry.length else "other tokens"
            raise DataError(
                f"example {entry.id} is not the text that the teacher store {self.folder} was made of: its chain of "
                f"thought or its surroundings have {what}",
                "tokenizer, dataset.cot_type, dataset.drop_last_step and data must be those of kava extract",
            )
        return shard.read(row)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # another process opens its own


def missing_shards(folder: Path, manifest: Manifest) -> list[int]:
    return [k for k in range(manifest.num_shards) if not (folder / shard_name(manifest, k)).is_file()]


def write_index(folder: Path, manifest: Manifest) -> None:
    """index.json, from the headers of all shards."""
    write_json(folder / INDEX, {"hashes": _scan(folder, manifest, progress=False)})


def verify(folder: str | Path, progress: bool = True) -> list[str]:
    """What is wrong with a store, one line each: every header, every hash, the index. Nothing is wrong: no line."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems: list[str] = []
    hashes: list[int] = []
    for k in progress_bar(range(manifest.num_shards), "verify", progress):
        try:
            shard = Shard(folder, manifest, k)
        except CheckpointError as error:
            problems.append(error.message)
            continue
        hashes += _hashes(shard.entries)
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
    for what, wanted, there in (
        ("importance", wants.importance, manifest.with_importance),
        ("cue", wants.cue, manifest.with_cue),
        ("question", bool(wants.question), manifest.with_question),
    ):
        if wanted and not there:
            raise ConfigError(
                f"this run needs the teacher's {what}, which the store {folder} does not have",
                f"extract again into another folder with --with_{what}",
            )


def _tokens(host: dict[str, Tensor], b: int) -> str:
    return tokens_hash(*(host[name][b][host[f"{name}_mask"][b]].tolist() for name in ("question", "cot", "tail")))


def _read_index(folder: Path, manifest: Manifest, progress: bool) -> dict[int, int]:
    """Position of each example by the hash of its id."""
    hashes = _stored_hashes(folder)
    if hashes is None or len(hashes) != manifest.num_examples:
        hashes = _scan(folder, manifest, progress)
    return {key: n for n, key in enumerate(hashes)}


def _stored_hashes(folder: Path) -> list[int] | None:
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [int(key) for key in found["hashes"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # nothing is lost: the shards have it all
        return None


def _scan(folder: Path, manifest: Manifest, progress: bool) -> list[int]:
    shards = progress_bar(range(manifest.num_shards), "index", progress)
    return [key for k in shards for key in _hashes(Shard(folder, manifest, k).entries)]


def _hashes(entries: list[Entry]) -> list[int]:
    return [stable_hash(entry.id) for entry in entries]
