"""The training and validation examples of a run, checked before the first step."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kava.backbone.model import Backbone
from kava.config import BUILTIN_DATASETS, Recipe
from kava.data.cards import card
from kava.data.encode import Encoded, Encoder, encode_split
from kava.data.example import Example, content_hash
from kava.data.load import ExampleStream, load_examples, load_rows, warn_shared
from kava.data.places import Opened, open_set
from kava.data.rows import TableRows
from kava.data.sources import OWN
from kava.data.token_cache import encode_kept
from kava.errors import ConfigError, DataError

log = logging.getLogger("kava.train")
IN_MEMORY = "rows in memory"


@dataclass(frozen=True)
class Data:
    """Encoded training examples, validation examples as text, and the data card."""

    train: Any
    validation: Sequence[Example]
    card: dict[str, Any]
    examples: Sequence[Example] = ()  # the training texts, where teachers read them in tokens of their own


@dataclass(frozen=True)
class MemoryData:
    """Rows given to `train` from Python, in place of the set that the recipe names."""

    train: Any = None
    validation: Any = None

    def opened(self) -> Opened | None:
        """The rows as an opened data set; None where there are no training rows."""
        return None if self.train is None else Opened(OWN, IN_MEMORY, {"train": TableRows(self.train, "train_data")})

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with dataset.name saying that the training rows come from memory."""
        return recipe if self.train is None else recipe.changed("dataset", name=IN_MEMORY, config=None)

    def card(self, validation: Sequence[Example]) -> dict[str, str]:
        """Entries of the data card, none where there are no rows in memory."""
        source = {} if self.train is None else {"source": IN_MEMORY}
        return source if self.validation is None else source | {"validation_sha256": content_hash(validation)}


def load_data(recipe: Recipe, tokenizer: Any, memory: MemoryData | None = None) -> Data:
    """Reads, encodes and checks the recipe's data set, or the rows in `memory`."""
    dataset, memory = recipe.dataset, memory or MemoryData()
    encoder = Encoder.of(tokenizer, dataset)
    if memory.validation is not None:  # then no training example is held out
        dataset = recipe.changed("dataset", val_size=0).dataset
    opened = memory.opened() or (
        None if dataset.name in BUILTIN_DATASETS else open_set(dataset.name, dataset.config, dataset.streaming)
    )
    examples = load_examples(dataset, "train", opened)
    validation = _validation(recipe, memory, opened)
    if dataset.streaming:
        return Data(_stream(recipe, examples, encoder), validation, {"streaming": True} | memory.card(validation))
    assert not isinstance(examples, ExampleStream)
    if opened is not None and memory.train is None:
        parts: dict[str, Sequence[Example]] = {"train": examples, "validation": validation}
        if "test" in opened.splits:
            parts["test"] = list(load_examples(dataset, "test", opened))
        warn_shared(parts, dataset, opened)
    encode = encode_kept if dataset.keep_tokens else encode_split
    split = encode(examples, encoder, dataset.max_length)
    keep = recipe.explicit.target_len if recipe.explicit.enabled else recipe.latent.num_tokens
    counts = card(split.encoded, examples, keep) | {"skipped": split.skipped} | memory.card(validation)
    any_result, any_cot = counts["share_no_result"] not in (None, 1), bool(split.encoded.lengths("cot").any())
    _check_terms(recipe, any_result, any_cot)
    return Data(split.encoded, validation, counts, examples if recipe.mixture.on else ())


def _validation(recipe: Recipe, memory: MemoryData, opened: Opened | None) -> list[Example]:
    """The validation examples, or a seeded choice of `evaluation.validation_size` of them."""
    dataset, size = recipe.dataset, recipe.evaluation.validation_size
    held_out = dataset.generator.val_size if dataset.name in BUILTIN_DATASETS else dataset.val_size
    if memory.validation is not None:
        examples = load_rows(memory.validation, "validation_data", dataset.cot_type)
    else:
        examples = list(load_examples(dataset, "validation", opened)) if held_out else []
    if size is None or size >= len(examples):
        return examples
    chosen = random.Random(dataset.seed).sample(range(len(examples)), size)
    return [examples[i] for i in sorted(chosen)]


def _stream(recipe: Recipe, examples: Any, encoder: Encoder) -> Any:
    from kava.data.stream import EncodedStream

    if recipe.rkv.full_slots:
        problem = "rkv.full_slots needs the longest chain of thought, which a stream does not tell"
        raise ConfigError(problem, "set dataset.streaming=false, or latent.num_tokens by hand")
    if recipe.training.max_steps is None:
        raise ConfigError("a stream has no known length", "set training.max_steps, or dataset.streaming=false")
    first = [encoder(example) for example in islice(examples, 300)]  # more than there can be workers
    if len(first) < recipe.system.num_workers:
        problem = (
            f"the training stream has {len(first)} rows, fewer than system.num_workers, {recipe.system.num_workers}"
        )
        raise ConfigError(problem, "lower system.num_workers, or set dataset.streaming=false")
    _check_terms(recipe, any(any(row.result) for row in first), any(row.cot for row in first))
    return EncodedStream(examples, encoder, recipe.dataset.max_length)


def _check_terms(recipe: Recipe, any_result: bool, any_cot: bool) -> None:
    """Raises where no example has what a term needs: step results, steps, or text before the answer."""
    last = recipe.dataset.drop_last_step
    if recipe.reads_steps and not any_cot:
        key, wanted = (
            ("loss.step_decoder", "to write") if recipe.loss.step_decoder > 0 else ("latent.stage_share", "to replace")
        )
        raise DataError(
            f"{key} is above 0, but no example of {recipe.dataset.name!r} has a step {wanted}",
            f"use a data set with steps, or set {key}=0{' or dataset.drop_last_step=false' * last}",
        )
    if recipe.loss.alpha2_kv <= 0:
        return
    if recipe.rkv.method == "steps" and not any_result:
        raise DataError(
            f"rkv.method is steps, but no example of {recipe.dataset.name!r} has a step result to anchor on",
            "use a data set with equation steps (a = b) or another rkv.method, such as rkv",
        )
    if recipe.explicit.enabled and not any_cot:
        raise DataError(
            f"no example of {recipe.dataset.name!r} has text between question and final answer, so the key/value term "
            "would compare nothing",
            "give rows with steps, or answers that end in '#### number'; or set loss.alpha2_kv=0",
        )


def check_positions(
    model: Backbone, train: Any, num_latents: int = 0, who: str = "model", stages: bool = False
) -> None:
    """Raises where an example is longer than the model's learned positions, before the run reaches it. `stages`: latents may
    stand before text of the chain of thought."""
    if (most := model.max_positions) is None:
        return
    if hasattr(train, "lengths"):
        answer = train.lengths("answer") + len(train.cue) + 1
        cot, thoughts = train.lengths("cot"), num_latents + 2
        longest = (train.lengths("question") + answer + (cot + thoughts if stages else cot.clip(min=thoughts))).tolist()
    else:  # nothing is known of a stream
        longest = []
    if beyond := [i for i, length in enumerate(longest) if length > most]:
        first = f"the first is {train[beyond[0]].id}"
        problem = f"{len(beyond)} examples need up to {max(longest)} positions, the {who} has {most}; {first}"
        raise DataError(problem, "skip them with dataset.max_length, or use a model with a longer context")


def fitting(rows: Sequence[Encoded], most: int | None, what: str) -> list[Encoded]:
    """The validation examples of at most `most` tokens; the others are counted in the log. `what` names the limit."""
    beyond = [] if most is None else [row.id for row in rows if len(row) > most]
    if not beyond:
        return list(rows)
    problem = f"{len(beyond)} of {len(rows)} validation examples do not fit into {what}, {most} (first: {beyond[0]})"
    if len(beyond) == len(rows):
        raise DataError(problem, "take shorter ones, or set dataset.val_size=0")
    log.warning("%s; they are not measured", problem)
    return [row for row in rows if len(row) <= (most or 0)]
