"""What a run trains and validates on, checked before the first step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kava.backbone.model import Backbone
from kava.config import BUILTIN_DATASETS, Recipe
from kava.data.cards import card
from kava.data.encode import Encoder, encode_split
from kava.data.example import Example
from kava.data.load import ExampleStream, load_examples
from kava.errors import ConfigError, DataError


@dataclass(frozen=True)
class Data:
    train: Any
    validation: Sequence[Example]
    card: dict[str, Any]
    examples: Sequence[Example] = ()  # the training texts, where teachers read them in tokens of their own


def load_data(recipe: Recipe, tokenizer: Any) -> Data:
    dataset = recipe.dataset
    encoder = Encoder(tokenizer, dataset.drop_last_step, dataset.cot_type)
    examples = load_examples(dataset, "train")
    validation = _validation(recipe)
    if dataset.streaming:
        return Data(_stream(recipe, examples, encoder), validation, {"streaming": True})
    assert not isinstance(examples, ExampleStream)
    split = encode_split(examples, encoder, dataset.max_length)
    keep = recipe.explicit.target_len if recipe.explicit.enabled else recipe.latent.num_tokens
    facts = card(split.encoded, examples, keep) | {"skipped": split.skipped}
    _check_results(recipe, facts["share_no_result"] not in (None, 1))
    _check_cot(recipe, bool(split.encoded.lengths("cot").any()))
    return Data(split.encoded, validation, facts, examples if recipe.mixture.on else ())


def _validation(recipe: Recipe) -> list[Example]:
    """The validation examples, or a seeded choice of `evaluation.validation_size` of them."""
    dataset, size = recipe.dataset, recipe.evaluation.validation_size
    held_out = dataset.generator.val_size if dataset.name in BUILTIN_DATASETS else dataset.val_size
    found = list(load_examples(dataset, "validation")) if held_out else []
    if size is None or size >= len(found):
        return found
    chosen = random.Random(dataset.seed).sample(range(len(found)), size)
    return [found[i] for i in sorted(chosen)]


def _stream(recipe: Recipe, examples: Any, encoder: Encoder) -> Any:
    from kava.data.stream import EncodedStream

    if recipe.rkv.full_slots:
        raise ConfigError(
            "rkv.full_slots needs the longest chain of thought, which a stream does not tell",
            "set dataset.streaming=false, or latent.num_tokens by hand",
        )
    if recipe.training.max_steps is None:
        raise ConfigError("a stream has no known length", "set training.max_steps, or dataset.streaming=false")
    first = [encoder(example) for example in islice(examples, 200)]
    _check_results(recipe, any(any(one.result) for one in first))
    _check_cot(recipe, any(one.cot for one in first))
    return EncodedStream(examples, encoder, recipe.dataset.max_length)


def _check_results(recipe: Recipe, some: bool) -> None:
    if recipe.rkv.method == "steps" and recipe.loss.alpha2_kv > 0 and not some:
        raise DataError(
            f"rkv.method is steps, but no example of {recipe.dataset.name!r} has a step result to anchor on",
            "use a data set with equation steps (a = b) or another rkv.method, such as rkv",
        )


def _check_cot(recipe: Recipe, some: bool) -> None:
    if recipe.explicit.enabled and recipe.loss.alpha2_kv > 0 and not some:
        raise DataError(
            f"no example of {recipe.dataset.name!r} has text between question and final answer, so the key/value term "
            "would compare nothing",
            "give rows with steps, or answers that end in '#### number'; or set loss.alpha2_kv=0",
        )


def check_positions(model: Backbone, train: Any, num_latents: int = 0, who: str = "model") -> None:
    """Learned positions have an end; a sequence beyond it would stop the run in the middle."""
    most = model.max_positions
    if most is None:
        return
    if hasattr(train, "lengths"):
        answer = train.lengths("answer") + len(train.cue) + 1
        longest = (train.lengths("question") + answer + train.lengths("cot").clip(min=num_latents + 2)).tolist()
    else:  # a list of validation examples; nothing is known of a stream
        longest = [len(one) for one in train] if isinstance(train, Sequence) else []
    beyond = [length for length in longest if length > most]
    if beyond:
        raise DataError(
            f"{len(beyond)} examples need up to {max(beyond)} positions, the {who} has {most}",
            "skip them with dataset.max_length, or use a model with a longer context",
        )
