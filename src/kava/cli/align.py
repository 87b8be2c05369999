"""kava align: how a teacher's tokens and layers meet a student's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kava.cli.common import show_result
from kava.cli.student import Device, Quiet
from kava.errors import ConfigError
from kava.text_table import table

if TYPE_CHECKING:
    from kava.align.layers import Entry
    from kava.align.tokens import Span
    from kava.config import Recipe

BLOCK = 12  # columns of the matrix in one line
app = typer.Typer(add_completion=False, rich_markup_mode=None)
SETTINGS = {"help_option_names": ["--help", "-h"]}

Student = Annotated[str, typer.Option("--student_model", help="hub name or local folder")]
Teacher = Annotated[str, typer.Option("--teacher_model", help="hub name or local folder")]
Trust = Annotated[bool, typer.Option("--trust_remote_code", help="run code that comes with the models")]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="overlap below which two tokens are not matched")]


@app.callback()
def align() -> None:
    """How a teacher's tokens and layers meet a student's: look at one text, or make a layer map from many."""


@app.command("show", context_settings=SETTINGS)
def show(
    student_model: Student,
    teacher_model: Teacher,
    text: Annotated[str, typer.Option(help="what both read")],
    threshold: Threshold = 0.1,
    layer_map: Annotated[
        Literal["ratio", "blend", "uniform", "skip"], typer.Option(help="how layers are matched")
    ] = "ratio",
    layer_map_file: Annotated[Path | None, typer.Option(help="the map in this file of kava align precompute")] = None,
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
) -> int:
    """Both tokenizations of a text, which tokens cover the same characters, and the layer map. No weights are loaded."""
    from kava.align.tokens import coverage, iou_matrix, normalised, spans_of
    from kava.backbone.load import load_tokenizer, locate
    from kava.backbone.silence_libraries import silence_libraries
    from kava.config import ModelConfig

    silence_libraries()
    models = [ModelConfig(name=name, trust_remote_code=trust_remote_code) for name in (student_model, teacher_model)]
    mine, theirs = (spans_of(text, load_tokenizer(locate(model.name), model)) for model in models)
    iou = iou_matrix(mine, theirs, threshold)
    sizes, layers = _layers(models, layer_map, layer_map_file)
    result = {
        "text": text,
        "student": _pieces(text, mine),
        "teacher": _pieces(text, theirs),
        "iou": iou.tolist(),
        "aligned": normalised(iou).tolist(),
        "coverage": coverage(iou),
        **_map_facts(sizes, layers),
    }
    show_result(result, _text(result, layers), quiet)
    return 0


@app.command("precompute", context_settings=SETTINGS)
def precompute(
    student_model: Student,
    teacher_model: Teacher,
    output: Annotated[Path, typer.Option(help="the .json file to write, for mixture.layer_map_files")],
    dataset_name: Annotated[str | None, typer.Option(help="hub name, folder, or a built-in set (chains)")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="configuration of a hub data set, e.g. main")] = None,
    train_file: Annotated[str | None, typer.Option(help="a local .jsonl file instead of --dataset_name")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="training examples that both models read")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="examples at once")] = 4,
    max_length: Annotated[int, typer.Option(min=8, help="leave out examples of more student tokens")] = 512,
    top_k: Annotated[int, typer.Option(min=1, help="teacher layers of each student layer")] = 2,
    threshold: Threshold = 0.1,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
) -> int:
    """A layer map by likeness: each student layer is given the teacher layers whose keys and values are most alike (CKA).

    Both models read the same reasoning texts; tokens are matched by characters, keys are taken before the rotary
    embedding. The file holds the similarities and the map; a recipe takes it with mixture.layer_map=cka.
    """
    if (dataset_name is None) == (train_file is None):
        raise ConfigError("kava align precompute needs --dataset_name or --train_file, one of them")
    if train_file is not None and dataset_config is not None:
        raise ConfigError("--dataset_config has no effect with --train_file", "leave one of them out")

    from kava.align.layers import write_map
    from kava.backbone.silence_libraries import silence_libraries
    from kava.data.collate import Collator
    from kava.data.progress import progress_bar
    from kava.data.teacher_texts import TeachersCollator
    from kava.infer.student import pick_device
    from kava.teachers.layer_similarity import layer_similarity
    from kava.teachers.teacher_set import load_teacher_set

    silence_libraries()
    name = dataset_name or str(train_file)
    recipe = _recipe(student_model, teacher_model, trust_remote_code, threshold, name, dataset_config)
    tokenizer, rows, texts = _examples(recipe, num_samples, max_length, quiet)
    both = load_teacher_set(recipe, tokenizer, pick_device(device))
    if top_k > both.shapes[1].num_layers:
        raise ConfigError(f"--top_k is {top_k}, the teacher has {both.shapes[1].num_layers} layers", "choose 1 or 2")
    collate = TeachersCollator(Collator(tokenizer.pad_token_id), both.tokenizations, texts)
    collate.check(rows, floor=0.0)
    starts = progress_bar(range(0, len(rows), batch_size), "batches", not quiet)
    similarity, count = layer_similarity(both, (collate(rows[start : start + batch_size]) for start in starts))
    facts = {"student_model": student_model, "teacher_model": teacher_model, "dataset": name, "num_samples": count}
    layers = write_map(output, similarity, top_k, facts)
    unlike = [layer for layer, row in enumerate(similarity) if not (row > 0).any()]
    result = {
        "output": str(output),
        **facts,
        "similarity_matrix": similarity.tolist(),
        "unlike_student_layers": unlike,
        **_map_facts((similarity.shape[0], similarity.shape[1]), layers),
    }
    note = f"note: student layers like no teacher layer (CKA <= 0): {', '.join(map(str, unlike))}\n" if unlike else ""
    done = f"{count} of {len(rows)} examples had enough matched tokens; wrote {output}"
    show_result(result, f"{_map_text(result, layers)}\n{note}{done}", quiet)
    return 0


# -- precompute --------------------------------------------------------------------------------------------------------


def _recipe(student: str, teacher: str, trust: bool, threshold: float, name: str, config: str | None) -> Recipe:
    """Both models as teachers of a mixture, which is how two models come to read one text."""
    from kava.config import DatasetConfig, MixtureConfig, ModelConfig, Recipe, TeacherSpec
    from kava.evaluation.eval_sets import cot_type_of

    specs = [
        TeacherSpec(name=role, model=model, trust_remote_code=trust)
        for role, model in (("student", student), ("teacher", teacher))
    ]
    dataset = DatasetConfig(name=name, config=config, drop_last_step=False, cot_type=cot_type_of(name, "equation"))
    return Recipe.model_construct(
        model=ModelConfig(name=student, trust_remote_code=trust),
        dataset=dataset,
        mixture=MixtureConfig(teachers=tuple(specs), iou_threshold=threshold),
    )


def _examples(recipe: Recipe, count: int, max_length: int, quiet: bool) -> tuple[Any, Any, Any]:
    """The student's tokenizer, the first examples encoded with it, and their texts by id."""
    from kava.backbone.load import load_tokenizer, locate
    from kava.data.encode import Encoder, encode_split
    from kava.data.load import load_examples
    from kava.data.teacher_texts import texts_of

    tokenizer = load_tokenizer(locate(recipe.model.name), recipe.model)
    encoder = Encoder(tokenizer, recipe.dataset.drop_last_step, recipe.dataset.cot_type)
    examples = list(load_examples(recipe.dataset, "train"))[:count]
    rows = encode_split(examples, encoder, max_length, progress=not quiet).encoded
    return tokenizer, rows, texts_of(examples)


# -- text --------------------------------------------------------------------------------------------------------------


def _layers(models: list[Any], strategy: str, file: Path | None) -> tuple[tuple[int, int], list[Entry]]:
    from kava.align.layers import layer_map, read_map
    from kava.backbone.sizes import num_layers

    mine, theirs = (num_layers(model) for model in models)
    layers = layer_map(mine, theirs, strategy) if file is None else read_map(file, mine, theirs)
    return (mine, theirs), layers


def _map_facts(sizes: tuple[int, int], layers: list[Entry]) -> dict[str, Any]:
    from kava.align.layers import unused

    return {
        "student_num_layers": sizes[0],
        "teacher_num_layers": sizes[1],
        "layer_mapping": {str(layer): [list(pair) for pair in entry] for layer, entry in enumerate(layers)},
        "unused_teacher_layers": unused(layers, sizes[1]),
    }


def _pieces(text: str, spans: list[Span]) -> list[str]:
    """What each token covers; a part of a character is shown as the whole character with its share."""
    from math import ceil

    found = []
    for start, end in spans:
        piece = text[int(start) : ceil(end)]
        share = end - start
        found.append(piece if abs(share - len(piece)) < 1e-6 else f"{piece}({share:.2f})")
    return found


def _text(result: dict[str, Any], layers: list[Entry]) -> str:
    mine, theirs = ([f"{j} {piece!a}" for j, piece in enumerate(result[side])] for side in ("student", "teacher"))
    lines = [f"text: {result['text']!a}", f"teacher: {len(theirs)} tokens: {'  '.join(theirs)}"]
    for first in range(0, len(theirs), BLOCK):
        columns = range(first, min(first + BLOCK, len(theirs)))
        rows = [
            [name, *(f"{row[j]:.2f}" if row[j] else "." for j in columns)]
            for name, row in zip(mine, result["iou"], strict=True)
            if any(row[j] for j in columns)
        ]
        lines += ["", table(rows, [f"student, {len(mine)} tokens", *map(str, columns)])]
    alone = [name for name, row in zip(mine, result["iou"], strict=True) if not any(row)]
    share = (
        f"coverage {100 * result['coverage']:.1f} %: {len(mine) - len(alone)} of {len(mine)} student tokens are matched"
    )
    return "\n".join(
        [*lines, "", share, *(["not matched: " + "  ".join(alone)] if alone else []), "", _map_text(result, layers)]
    )


def _map_text(result: dict[str, Any], layers: list[Entry]) -> str:
    rows = [
        [str(layer), ", ".join(f"{one} ({weight:.2f})" for one, weight in entry)] for layer, entry in enumerate(layers)
    ]
    left = result["unused_teacher_layers"]
    note = "every teacher layer has a part" if not left else "unused teacher layers: " + ", ".join(map(str, left))
    return f"{table(rows, ['student layer', 'teacher layers (weight)'])}\n{note}"
