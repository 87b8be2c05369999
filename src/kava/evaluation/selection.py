"""Which tokens of the chain of thought each compressor keeps, layer by layer and head by head."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kava.compress import Compressor, Samples, compressor_of
from kava.compress.full import Full
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder
from kava.data.example import Example
from kava.data.load import load_examples
from kava.errors import ConfigError, DataError
from kava.infer.student import Student
from kava.objective.records import PassOutputs, Step
from kava.objective.targets import OwnTeacher
from kava.objective.unpacked import run_teacher
from kava.provenance import versions
from kava.teachers.base import TeacherWants


def compressors_of(recipe: Recipe, names: Sequence[str]) -> dict[str, Compressor]:
    """By name, with the recipe's own settings."""
    if recipe.latent.num_tokens == 0:
        raise ConfigError("this student has no latents (M = 0): a compressor has nothing to fill")
    return {name: compressor_of(recipe.rkv, name) for name in dict.fromkeys(names)}


def selection_document(
    student: Student, checkpoint: Path, compressors: dict[str, Compressor], count: int, examples: Sequence[Example]
) -> dict[str, Any]:
    """The content of kept.json. kept[compressor][layer][head]: the kept columns of `tokens`, in time order.

    `resampled` names the compressors whose entries lie between two columns; the nearer column is listed.
    """
    model, recipe = student.model, student.recipe
    keep, tokenizer = model.latent.num_tokens, student.tokenizer
    encoder = Encoder.of(tokenizer, recipe.dataset)
    chosen = choose(encoder.encode_batch(examples), keep, count)
    question = {example.id: example.question for example in examples}

    def document(row: Encoded) -> dict[str, Any]:
        tokens = [tokenizer.decode([token]) for token in row.cot]
        facts = {"id": row.id, "question": question[row.id], "tokens": tokens, "is_result": row.result}
        return facts | {"kept": _kept(student, row, compressors)}

    return {
        "checkpoint": str(checkpoint),
        "config": recipe.about.name,
        "keep": keep,
        "layers": model.kv_shape.num_layers,
        "heads": model.kv_shape.num_heads,
        "resampled": [name for name, compressor in compressors.items() if isinstance(compressor, Full)],
        "versions": versions(),
        "examples": [document(row) for row in chosen],
    }


def choose(encoded: Sequence[Encoded], keep: int, count: int) -> list[Encoded]:
    """`count` examples whose chain of thought is longer than `keep` tokens, from short to long; filled up with the
    longest of the others."""
    longer = [e for e in encoded if len(e.cot) > keep]
    others = sorted((e for e in encoded if 0 < len(e.cot) <= keep), key=lambda e: -len(e.cot))
    if not longer and not others:
        raise DataError(
            "no validation example has a chain of thought",
            "where the last step is dropped, problems need two steps (dataset.drop_last_step)",
        )
    if len(longer) > count > 1:
        longer.sort(key=lambda e: len(e.cot))
        longer = [longer[i * (len(longer) - 1) // (count - 1)] for i in range(count)]
    return [*longer, *others][:count]


@torch.inference_mode()
def _kept(student: Student, row: Encoded, compressors: dict[str, Compressor]) -> dict[str, list[list[list[int]]]]:
    model, recipe = student.model.eval(), student.recipe
    batch = {name: value.to(model.device) for name, value in Collator(student.tokenizer.pad_token_id)([row]).items()}
    teacher = run_teacher(model, batch, PassOutputs(teacher=True, student=False, kv=True, codi=False))
    kv = OwnTeacher(model, recipe.rkv.rotary)(batch, (None, teacher), TeacherWants(importance=True), Step()).kv
    samples, mask = Samples(batch["example_id"], batch["cot_result"], recipe.system.seed), batch["cot_mask"]
    assert kv.importance is not None
    columns: dict[str, list[list[list[int]]]] = {}
    for name, compressor in compressors.items():
        columns[name] = []
        for key, value, weight in zip(kv.keys, kv.values, kv.importance, strict=True):
            entries = compressor(key, value, mask, weight, model.latent.num_tokens, samples=samples)
            heads = zip(entries.index[0], entries.kept[0], strict=True)
            columns[name].append([index[real].tolist() for index, real in heads])
    return columns


def validation(recipe: Recipe) -> list[Example]:
    """The recipe's validation examples."""
    return list(load_examples(recipe.dataset, "validation"))


def shares(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per compressor over all examples, layers and heads: entries kept, step results among them, top tokens.

    The first row counts every token of the chain of thought once, for comparison.
    """
    rows = [_share("(all tokens)", [(e, range(len(e["tokens"]))) for e in document["examples"]])]
    for name in document["examples"][0]["kept"]:
        places = [(e, head) for e in document["examples"] for layer in e["kept"][name] for head in layer]
        rows.append(_share(name, places))
    return rows


def _share(name: str, places: Sequence[tuple[dict[str, Any], Sequence[int]]]) -> dict[str, Any]:
    tokens = Counter(example["tokens"][i] for example, columns in places for i in columns)
    total = sum(tokens.values())
    results = sum(example["is_result"][i] for example, columns in places for i in columns)
    return {"compressor": name, "entries": total, "results": results, "tokens": dict(tokens.most_common(5))}
