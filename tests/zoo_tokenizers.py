"""Tiny tokenizers built in memory: no file, no network. `TOKENIZERS` holds the fast ones by name.

byte_level   byte-level BPE trained on the spot, digits split (as Llama 3, Qwen and GPT-2 do it)
bos          the same with a post-processor that adds a bos token (as Llama does it)
words        whitespace words and punctuation, lower-cased (a WordPiece-like tokenizer, spaces are lost)
"""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Natalia sold 48 clips in April, and then she sold half as many clips in May. How many clips altogether?",
    "<<48/2=24>> <<48+24=72>> <<1200-3*4=1188>> 3+4*2-1? 3+4=2 2*2=4 4-1=3 a=3;b=a*2;c=b+4;c?",
    "Start with 3. Add 4. Multiply by 2. Subtract 1. What is the result? a is 3. b is a plus 4. What is b?",
    "3 plus 4 is 2. 2 times 2 is 4. 4 minus 1 is 3. She has 16 - 3 - 4 = 9 eggs left. So 9 dollars.",
    "The answer is: 72",
) * 4
SPECIAL = ["<pad>", "<eos>", "<bos>"]


def _fast(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", **names)


def _byte_level_core(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def byte_level(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    return _fast(_byte_level_core(vocab_size))


@cache
def bos(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    tokenizer = _byte_level_core(vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return _fast(tokenizer, bos_token="<bos>")


@cache
def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False,
        initial_alphabet=list("0123456789+-*/=<>.,;:?$"),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, unk_token="<unk>")


def wrapped() -> PreTrainedTokenizerFast:
    """One that puts <bos> before and <eos> behind every text, as encoders do: not usable."""
    tokenizer = _byte_level_core(300)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    return _fast(tokenizer, bos_token="<bos>")


class SlowTokenizer:
    """What a slow tokenizer looks like from outside: it has no offsets."""

    is_fast = False
    eos_token_id = 1

    def __call__(self, text, **options):
        if options.get("return_offsets_mapping"):
            raise NotImplementedError("no offsets")
        return {"input_ids": [list(t.encode()) for t in text] if isinstance(text, list) else list(text.encode())}


TOKENIZERS = {"byte_level": byte_level, "bos": bos, "words": words}


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Its model has the names of its special tokens among its pieces, as those converted from SentencePiece do."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = list("0123456789+-*/=<>.,;:?$%#()abcdefghijklmnopqrstuvwxyz|")
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False,
        initial_alphabet=alphabet,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, unk_token="<unk>")


@cache
def word_level() -> PreTrainedTokenizerFast:
    """One id per word; the names of its special tokens are words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, unk_token="<unk>")


@cache
def whole_words() -> PreTrainedTokenizerFast:
    """Byte-level BPE that takes whole words of its vocabulary before it merges, as Llama 3 does."""
    core = _byte_level_core(400)
    core.model.ignore_merges = True
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return _fast(core)


READERS = TOKENIZERS | {"unigram": unigram, "word_level": word_level, "whole_words": whole_words}
