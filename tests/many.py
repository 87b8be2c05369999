"""Teachers of several families with really different tokenizers, trained on the spot and saved as local folders.

    folder("llama")    Llama-like, grouped heads; unigram with word marks and bos
    folder("qwen2")    Qwen2-like, biases, one key/value head for three query heads; byte-level BPE, digits apart
    folder("qwen3")    Qwen3-like, q/k norm, its own head size; WordPiece, lower-cased
    folder("gpt2")     GPT-2-like, learned positions; byte-level BPE that joins digits
    folder("opt")      OPT-like, learned positions           } of families that are read
    folder("neox")     GPT-NeoX-like, a quarter is rotated   } through their cache alone
    folder("mistral")  Mistral-like, a window of 6 tokens    }
    folder("twin")     the weights of llama under another name

`student_folder` is a smaller Llama-like model: byte-level BPE, digits apart, with bos. Ask a folder for its tokenizer
(`tokenizer`): transformers has ideas of its own about some families'.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kava.backbone.load import load_tokenizer
from kava.backbone.silence_libraries import silence_libraries
from kava.config import ModelConfig, Recipe, load_recipe
from kava.data.example import Example
from kava.data.load import load_examples
from zoo_tokenizers import CORPUS, SPECIAL

BILINGUAL = (
    "Ann buys 12 apples for 3 yuan each and pays 36 yuan.",
    "\u5c0f\u660e\u4e70\u4e86 12 \u4e2a\u82f9\u679c\uff0c\u6bcf\u4e2a 3 \u5143\uff0c\u4e00\u5171 36 \u5143\u3002",
    "Caf\u00e9 costs 4 euros; two cost 8 \U0001f600.",
    "\u5979\u6709 16 - 3 - 4 = 9 \u4e2a\u9e21\u86cb\u3002 She has 9 eggs.",
)
CHAINS = ["dataset.generator.train_size=48", "dataset.generator.val_size=8"]
_place: list[Path] = []


def _root() -> Path:
    """One folder for the whole process, gone at its end."""
    if not _place:
        _place.append(Path(tempfile.mkdtemp(prefix="kava-many-")))
        atexit.register(shutil.rmtree, _place[0], ignore_errors=True)
    return _place[0]


@cache
def examples() -> tuple[Example, ...]:
    """Chains in both forms, and a few problems in two languages; ids of their own."""
    found = [*load_examples(load_recipe("debug", CHAINS).dataset, "train")]
    for i, text in enumerate(BILINGUAL):
        found.append(
            Example(f"two/train/{i}", f"{text}?", (text, f"<<{i + 3}*4={4 * i + 12}>>", text), str(4 * i + 12))
        )
    return tuple(found)


# -- tokenizers ------------------------------------------------------------------------------------------------------


def _texts() -> list[str]:
    chains = [" ".join((one.question, *one.steps)) for one in examples()]
    return [*CORPUS, *BILINGUAL * 2, *chains]


def _fast(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    given = {"pad_token": "<pad>", "eos_token": "<eos>", **names}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **given
    )


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def _byte_level(first: Any, size: int, regex: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


@cache
def digits() -> PreTrainedTokenizerFast:
    """Byte-level BPE with every digit alone and a bos token."""
    return _fast(_with_bos(_byte_level(pre_tokenizers.Digits(True), 380, regex=True)), bos_token="<bos>")


@cache
def joined() -> PreTrainedTokenizerFast:
    """Byte-level BPE that may join digits and signs."""
    return _fast(_byte_level(pre_tokenizers.Split(" ", "merged_with_next"), 420, regex=False))


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Pieces with word marks and a bos token, as sentencepiece has them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _fast(_with_bos(tokenizer), unk_token="<unk>", bos_token="<bos>")


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """Lower-cased words in pieces; spaces are lost, accents are taken off."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False,
        initial_alphabet=list("0123456789+-*/=<>.,;:?$"),
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(), trainer)
    return _fast(tokenizer, unk_token="<unk>")


# -- models ----------------------------------------------------------------------------------------------------------

_llama = {"intermediate_size": 40, "max_position_embeddings": 512}
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama": ("Llama", unigram, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
              "num_key_value_heads": 2, **_llama}),
    "qwen2": ("Qwen2", digits, {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3,
              "num_key_value_heads": 1, **_llama}),
    "qwen3": ("Qwen3", wordpiece, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 4, "head_dim": 10, **_llama}),
    "gpt2": ("GPT2", joined, {"n_embd": 24, "n_layer": 5, "n_head": 3, "n_positions": 512}),
    "opt": ("OPT", joined, {"hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
            "word_embed_proj_dim": 24, "max_position_embeddings": 512}),
    "neox": ("GPTNeoX", unigram, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
             "rotary_pct": 0.25, **_llama}),
    "mistral": ("Mistral", digits, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
                "num_key_value_heads": 3, "head_dim": 8, "sliding_window": 6, **_llama}),
    "bert": ("Bert", wordpiece, {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, **_llama}),
    "mamba": ("Mamba", joined, {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "small": ("Llama", digits, {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2, **_llama}),
}  # fmt: skip
CLASSES = {"GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel"}


def build(kind: str, seed: int = 0, **own: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random model of KINDS (`own`: other settings) and its tokenizer."""
    family, tokenizer, settings = KINDS[kind]
    names = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = getattr(transformers, f"{family}Config")
    torch.manual_seed(seed)
    size = len(tokenizer())
    model = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(
        config(vocab_size=size, **names | settings | own)
    )
    for weight in model.parameters():  # larger than the usual start, so that attention is far from even
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval(), tokenizer()


@cache
def folder(kind: str, seed: int = 0) -> str:
    """A checkpoint of KINDS, or twin, as a recipe names it."""
    silence_libraries()
    place = _root() / (f"{kind}{seed}" if seed else kind)
    model, tokenizer = build("llama" if kind == "twin" else kind, seed)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def student_folder() -> str:
    return folder("small")


@cache
def tokenizer(kind: str) -> Any:
    """The tokenizer that a folder gives."""
    return load_tokenizer(folder(kind), ModelConfig(name=folder(kind)))


def entry(kind: str, **own: Any) -> str:
    """An entry of mixture.teachers in YAML: many.entry("llama", prompt="cot")."""
    given = {"name": kind, "model": folder(kind), **own}
    return "{" + ", ".join(f"{key}: {_quoted(value)}" for key, value in given.items()) + "}"


def _quoted(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "'" + str(value).replace("'", "''") + "'"


def settings(*teachers: str) -> list[str]:
    """Overrides for explicit_embedded: these entries (kinds or `entry`s) teach the small student."""
    entries = [one if one.startswith("{") else entry(one) for one in teachers]
    return [
        f"model.name={student_folder()}",
        f"mixture.teachers=[{', '.join(entries)}]",
        "projector.direction=none",
        *CHAINS,
    ]


def recipe(*teachers: str, more: tuple[str, ...] = ()) -> Recipe:
    return load_recipe("explicit_embedded", [*settings(*teachers), *more])
