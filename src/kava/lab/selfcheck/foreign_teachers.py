"""Teachers made on the spot for `kava smoke multi-teacher`: random models of several families, each a folder of its own
with a tokenizer of another kind, trained in a moment on the built-in problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kava.backbone.load import load_tokenizer
from kava.config import GeneratorConfig, LatentConfig, ModelConfig
from kava.data.generator import Generator
from kava.lab.bench.reference import random_model
from kava.lab.selfcheck.context import Place

SPECIAL = ["<unk>", "<pad>", "<eos>"]
MIXED = (  # steps in two scripts, with an accent and a sign of four bytes
    "Caf\u00e9: 12 cups at 3 = 36 \U0001f600.",
    "\u5c0f\u660e\u6709 16 - 3 - 4 = 9 \u4e2a\u82f9\u679c, so 9 apples.",
)


def byte_bpe() -> Tokenizer:
    """Byte-level pairs, as GPT-2, Llama 3 and Qwen have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters, **_given()))


def unigram() -> Tokenizer:
    """Pieces with marks for spaces, as sentencepiece has them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **_given()))


def wordpiece() -> Tokenizer:
    """Lower-cased words in pieces; spaces are lost."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    letters = list("0123456789+-*/=<>.,;:?")
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=150, initial_alphabet=letters, **_given()))


KINDS: dict[str, tuple[Callable[[], Tokenizer], str, tuple[int, int, int, int]]] = {
    # layers, width, heads, heads of keys and values
    "byte_bpe": (byte_bpe, "gpt2", (5, 24, 3, 3)),
    "unigram": (unigram, "qwen2", (3, 32, 4, 2)),
    "wordpiece": (wordpiece, "llama", (2, 24, 2, 1)),
}


def teacher_folder(place: Place, kind: str) -> Path:
    """The checkpoint of one of KINDS, written when first asked for."""
    make, family, shape = KINDS[kind]
    folder = place.folder / f"teacher_{kind}"
    if not folder.exists():
        tokenizer = make()
        model = random_model(*shape, tokenizer.get_vocab_size(), LatentConfig(), family, std=0.3)
        model.causal_lm.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


def tokenizer_of(place: Place, kind: str) -> Any:
    return load_tokenizer(teacher_folder(place, kind), ModelConfig())


def _given() -> dict[str, Any]:
    return {"special_tokens": SPECIAL, "show_progress": False}


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


@cache
def _texts() -> tuple[str, ...]:
    settings = GeneratorConfig(train_size=64, val_size=1, test_size=1)
    problems = [one for name in ("chains", "chains_nl") for one in Generator(name, settings, 0).split("train")]
    return (*(" ".join((one.question, *one.steps, one.answer)) for one in problems), "The answer is: 7", *MIXED)
