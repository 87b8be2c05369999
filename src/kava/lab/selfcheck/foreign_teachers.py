"""Teachers of other families for `kava smoke multi-teacher`: random models, each with a tokenizer of another kind that is
trained in a moment on the built-in problems."""

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kava.backbone.load import load_tokenizer
from kava.config import GeneratorConfig, LatentConfig, ModelConfig
from kava.data.generator import Generator
from kava.files import write_json
from kava.lab.bench.reference import random_model
from kava.lab.selfcheck.context import SelfCheckContext

TRAINER: dict[str, Any] = {"special_tokens": ["<unk>", "<pad>", "<eos>"], "show_progress": False}
LETTERS = pre_tokenizers.ByteLevel.alphabet()
Kind = tuple[Any, Any, Any, Any, str, tuple[int, int, int, int]]
KINDS: dict[str, Kind] = {  # the tokenizer's model, splitter, decoder and trainer; the language model's family and sizes
    # byte-level pairs, as in GPT-2, Llama 3 and Qwen
    "byte_bpe": (models.BPE, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(),
                 trainers.BpeTrainer(vocab_size=330, initial_alphabet=LETTERS, **TRAINER), "gpt2", (5, 24, 3, 3)),
    # pieces with marks for spaces, as in sentencepiece
    "unigram": (models.Unigram, pre_tokenizers.Metaspace(), decoders.Metaspace(),
                trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **TRAINER), "qwen2", (3, 32, 4, 2)),
}  # fmt: skip


def teacher_folder(context: SelfCheckContext, kind: str) -> Path:
    """The checkpoint of one of KINDS, written when it is first needed."""
    model_kind, splitter, decoder, trainer, family, sizes = KINDS[kind]
    folder = context.folder / f"teacher_{kind}"
    if not folder.exists():
        tokenizer = Tokenizer(model_kind())
        tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
        tokenizer.train_from_iterator(_texts(), trainer)
        model = random_model(*sizes, tokenizer.get_vocab_size(), LatentConfig(), family, std=0.3)
        model.causal_lm.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
        write_json(folder / "tokenizer_config.json", names)
    return folder


def tokenizer_of(context: SelfCheckContext, kind: str) -> Any:
    return load_tokenizer(teacher_folder(context, kind), ModelConfig())


@cache
def _texts() -> tuple[str, ...]:
    settings = GeneratorConfig(train_size=64, val_size=1, test_size=1)
    problems = [problem for name in ("chains", "chains_nl") for problem in Generator(name, settings, 0).split("train")]
    return (*(" ".join((p.question, *p.steps, p.answer)) for p in problems), "The answer is: 7")
