"""Token ids of large sets, kept between runs: tokenizing GSM8k-AUG takes minutes, reading them back a second.

A folder for each data set and tokenizer, a file for every `ROWS` examples; what a stopped run has written is used by the
next one. The folder's name is a hash of all that decides about the ids, which each file repeats.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kava.data.encode import EncodedSet, EncodedSplit, Encoder, encode_batches, encode_split
from kava.data.example import Example, content_hash
from kava.errors import DataError
from kava.files import make_folder, write_bytes
from kava.progress import progress

log = logging.getLogger(__name__)
ROWS = 20_000  # examples in a file; smaller sets are not kept
FORMAT = 2


def cache_root() -> Path:
    """KAVA_CACHE_PATH, else ~/.cache/kava."""
    return Path(os.environ.get("KAVA_CACHE_PATH") or "~/.cache/kava").expanduser() / "tokens"


def encode_kept(examples: Sequence[Example], encoder: Encoder, max_length: int | None = None) -> EncodedSplit:
    """`encode_split`; the token ids of large sets are kept."""
    if len(examples) < ROWS:
        return encode_split(examples, encoder, max_length)
    cache, encoded = TokenCache.of(examples, encoder), EncodedSet(encoder.cue, encoder.eos)
    with progress("tokenizing", len(examples), "examples") as meter:
        for start in range(0, len(examples), ROWS):
            encoded.extend(cache.rows(start, examples[start : start + ROWS], encoder, meter.advance), max_length)
    return EncodedSplit.of(encoded, len(examples), max_length)


class TokenCache:
    """The files of one data set in one encoding; `rows` gives what the encoder would."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        self.writable = True

    @classmethod
    def of(cls, examples: Sequence[Example], encoder: Encoder) -> "TokenCache":
        """The cache of these examples in this encoding."""
        tokenizer = encoder.tokenizer
        facts = [
            FORMAT, content_hash(examples), encoder.drop_last_step, encoder.cot_type, encoder.bos, encoder.cue, encoder.eos,
            tokenizer.backend_tokenizer.to_str(), None if encoder.chat is None else tokenizer.chat_template,
        ]  # fmt: skip
        facts += ["results"] if encoder.results_alone else []  # sets of whole steps have no such entry
        key = hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()
        return cls(cache_root() / key[:32], key)

    def rows(
        self, start: int, examples: Sequence[Example], encoder: Encoder, advance: Callable[[int], None]
    ) -> EncodedSet:
        """The encoded examples from the `start`-th on: read where they are there, else made and written."""
        path = self.folder / f"{start:09d}.safetensors"
        if (kept := self._read(path, examples, encoder)) is not None:
            advance(len(examples))
            return kept
        rows = EncodedSet(encoder.cue, encoder.eos)
        for row in encode_batches(examples, encoder, batch_size=1000):
            rows.append(row)
            advance(1)
        self._write(path, rows)
        return rows

    def _read(self, path: Path, examples: Sequence[Example], encoder: Encoder) -> EncodedSet | None:
        """The rows of a file; None where there is none, or a torn one."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                facts = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s): its rows are tokenized again", path, error)
            return None
        if facts.get("key") != self.key or facts.get("rows") != str(len(examples)):
            raise DataError(
                f"{path} holds the tokens of another tokenizer or data set", f"delete the folder {self.folder}"
            )
        return EncodedSet.of_arrays([example.id for example in examples], arrays, encoder.cue, encoder.eos)

    def _write(self, path: Path, rows: EncodedSet) -> None:
        if not self.writable:
            return
        try:
            make_folder(self.folder)
            write_bytes(path, save(rows.arrays(), {"key": self.key, "rows": str(len(rows))}))
        except OSError as error:  # a full or read-only disk: the run itself needs none of it
            self.writable = False
            log.warning("token ids are not kept in %s: %s (KAVA_CACHE_PATH names another folder)", self.folder, error)
