"""The items of an evaluation: one set by name, path or rows, all of it or a stated part."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from kava import answers
from kava.characters import check_characters
from kava.config import DatasetConfig, GeneratorConfig, Recipe
from kava.data.example import Example, content_hash
from kava.data.generator import BUILT_IN, Generator
from kava.data.load import load_examples, load_file, load_rows
from kava.data.places import FILE_SUFFIXES
from kava.data.sources import known_source
from kava.data.tasks import TASKS
from kava.errors import ConfigError, DataError

CotType = Literal["equation", "natural_language"]


@dataclass(frozen=True)
class EvalSet:
    """`name` is the set's name in results; `set_size` counts it before `limit`; `part` names a part in file names."""

    name: str
    examples: Sequence[Example]
    set_size: int
    part: str = ""

    @property
    def sha256(self) -> str:
        return content_hash(self.examples)


def load_eval_set(
    recipe: Recipe, name: str, limit: int | None = None, num_steps: int | None = None, rows: Any = None
) -> EvalSet:
    """The test split of a set known by name, a hub id or a folder; every row of a .jsonl file or of `rows`.

    Built-in sets are generated with the recipe's own settings, and `num_steps` with problems of exactly that length,
    `limit` of them. Elsewhere `limit` draws that many items, always the same.
    """
    if num_steps is not None:
        if name not in BUILT_IN:
            hint = f"only built-in sets have it: {', '.join(BUILT_IN)}"
            raise ConfigError(f"--num_steps has no effect on {name}", hint)
        generator = recipe.dataset.generator
        count, part = (generator.test_size, "") if limit is None else (limit, f".limit{limit}")
        examples = Generator(name, generator, recipe.dataset.seed).of_length("test", num_steps, count)
        return EvalSet(name, examples, count, f".steps{num_steps}{part}")
    items = load_rows(rows, name, recipe.dataset.cot_type) if rows is not None else _examples(recipe, name)
    for item in items:
        if answers.number(item.answer) is None:
            problem = f"data set {name}: the answer of {item.id} is {item.answer!r}, which is no number"
            raise DataError(problem, "answers are compared as numbers")
    if limit is None or limit >= len(items):
        return EvalSet(short_name(name), items, len(items))
    order = list(range(len(items)))
    random.Random("limit").shuffle(order)  # not the first items: many sets are sorted by something
    return EvalSet(short_name(name), [items[i] for i in sorted(order[:limit])], len(items), f".limit{limit}")


def short_name(name: str) -> str:
    """gsm8k for openai/gsm8k, own for path/to/own.jsonl."""
    source = known_source(name) or known_source(Path(name).name)
    if source is not None:
        return source.name
    return Path(name).stem if Path(name).suffix in FILE_SUFFIXES else Path(name).name


def _examples(recipe: Recipe, name: str) -> Sequence[Example]:
    own = recipe.dataset
    check_characters(name, "the name of the data set")
    if Path(name).suffix in FILE_SUFFIXES:
        return load_file(name, own.cot_type)
    config = own.config if name == own.name else None
    generator = own.generator if name in BUILT_IN else GeneratorConfig()
    cot_type = cot_type_of(name, own.cot_type)
    wanted = {"name": name, "config": config, "cot_type": cot_type, "seed": own.seed, "generator": generator}
    dataset = DatasetConfig().model_copy(update=wanted)  # whatever the name is, it is looked for
    return list(load_examples(dataset, "test"))


def cot_type_of(name: str, default: CotType) -> CotType:
    """The kind of steps the set has; `default` where it has both."""
    if name in BUILT_IN:
        return cast(CotType, TASKS[name].cot_type)
    source = known_source(name) or known_source(Path(name).name)
    return cast(CotType, source.cot_type) if source is not None and source.cot_type is not None else default
