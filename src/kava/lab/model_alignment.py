"""How two models' tokens and layers match: for one text, or as a layer map measured on many (kava align)."""

from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

from kava.align.layers import Entry, layer_map, read_map, unused, write_map
from kava.align.tokens import Span, coverage, iou_matrix, normalised, spans_of
from kava.backbone.load import load_tokenizer, locate, num_layers
from kava.config import DatasetConfig, MixtureConfig, ModelConfig, Recipe, TeacherSpec
from kava.data.collate import Collator
from kava.data.encode import Encoder, encode_split
from kava.data.load import load_examples
from kava.data.teacher_texts import TeachersCollator, texts_of
from kava.errors import ConfigError
from kava.evaluation.eval_sets import cot_type_of
from kava.infer.student import pick_device
from kava.progress import track
from kava.teachers.layer_similarity import layer_similarity
from kava.teachers.teacher_set import load_teacher_set
from kava.text_table import table

COLUMNS = 12  # of the overlap matrix side by side


def align_text(
    student: ModelConfig, teacher: ModelConfig, text: str, threshold: float, strategy: str, map_file: Path | None
) -> dict[str, Any]:
    """Both tokenizations of `text`, the overlap of their tokens (IoU of characters), and the layer map."""
    spans = [spans_of(text, load_tokenizer(locate(model.name, model.gguf_file), model)) for model in (student, teacher)]
    iou = iou_matrix(spans[0], spans[1], threshold)
    sizes = num_layers(student), num_layers(teacher)
    layers = layer_map(*sizes, strategy) if map_file is None else read_map(map_file, *sizes)
    return {
        "text": text,
        "student": _pieces(text, spans[0]),
        "teacher": _pieces(text, spans[1]),
        "iou": iou.tolist(),
        "aligned": normalised(iou).tolist(),
        "coverage": coverage(iou),
        **_map_facts(*sizes, layers),
    }


def measure_layer_map(
    student: ModelConfig, teacher: ModelConfig, dataset: DatasetConfig, output: Path, *, num_samples: int,
    batch_size: int, max_length: int, top_k: int, threshold: float, device: str, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write the `top_k` most similar teacher layers of each student layer (CKA of keys and values on the same texts)."""
    specs = tuple(
        TeacherSpec(name=role, model=model.name, trust_remote_code=model.trust_remote_code)
        for role, model in (("student", student), ("teacher", teacher))
    )  # as the teachers of a mixture, two models read one text in their own tokens
    dataset = dataset.model_copy(update={"cot_type": cot_type_of(dataset.name, "equation"), "drop_last_step": False})
    mixture = MixtureConfig(teachers=specs, iou_threshold=threshold)
    recipe = Recipe.model_construct(model=student, dataset=dataset, mixture=mixture)
    tokenizer = load_tokenizer(locate(student.name, student.gguf_file), student)
    encoder = Encoder.of(tokenizer, dataset)
    examples = list(load_examples(dataset, "train"))[:num_samples]
    rows = encode_split(examples, encoder, max_length, progress=progress).encoded
    models = load_teacher_set(recipe, tokenizer, pick_device(device))
    if top_k > models.shapes[1].num_layers:
        raise ConfigError(f"--top_k is {top_k}, the teacher has {models.shapes[1].num_layers} layers", "choose 1 or 2")
    collate = TeachersCollator(Collator(tokenizer.pad_token_id), models.tokenizations, texts_of(examples))
    collate.check(rows, floor=0.0)
    starts = track(range(0, len(rows), batch_size), "comparing layers", unit="batches", show=progress)
    similarity, count = layer_similarity(models, (collate(rows[start : start + batch_size]) for start in starts))
    models_read = {"student_model": student.name, "teacher_model": teacher.name}
    facts = models_read | {"dataset": dataset.name, "num_samples": count}
    layers = write_map(output, similarity, top_k, facts)
    return {
        "output": str(output),
        **facts,
        "num_examples": len(rows),
        "similarity_matrix": similarity.tolist(),
        "unlike_student_layers": [layer for layer, row in enumerate(similarity) if not (row > 0).any()],
        **_map_facts(similarity.shape[0], similarity.shape[1], layers),
    }


def _map_facts(student_layers: int, teacher_layers: int, layers: list[Entry]) -> dict[str, Any]:
    return {
        "student_num_layers": student_layers,
        "teacher_num_layers": teacher_layers,
        "layer_mapping": {str(layer): [list(pair) for pair in entry] for layer, entry in enumerate(layers)},
        "unused_teacher_layers": unused(layers, teacher_layers),
    }


def _pieces(text: str, spans: Iterable[Span]) -> list[str]:
    """The characters of each token; of a token that is part of a character, that character and the share."""
    pieces = []
    for start, end in spans:
        piece, share = text[int(start) : ceil(end)], end - start
        pieces.append(piece if abs(share - len(piece)) < 1e-6 else f"{piece}({share:.2f})")
    return pieces


def alignment_table(result: dict[str, Any]) -> str:
    """A result of `align_text` as text: the overlap matrix in blocks of columns, the coverage, the layer map."""
    student, teacher = ([f"{j} {piece!a}" for j, piece in enumerate(result[side])] for side in ("student", "teacher"))
    lines = [f"text: {result['text']!a}", f"teacher: {len(teacher)} tokens: {'  '.join(teacher)}"]
    for first in range(0, len(teacher), COLUMNS):
        columns = range(first, min(first + COLUMNS, len(teacher)))
        rows = [
            [name, *(f"{row[j]:.2f}" if row[j] else "." for j in columns)]
            for name, row in zip(student, result["iou"], strict=True)
            if any(row[j] for j in columns)
        ]
        lines += ["", table(rows, [f"student, {len(student)} tokens", *map(str, columns)])]
    unmatched = [name for name, row in zip(student, result["iou"], strict=True) if not any(row)]
    matched = f"{len(student) - len(unmatched)} of {len(student)} student tokens are matched"
    lines += ["", f"coverage {100 * result['coverage']:.1f} %: {matched}"]
    lines += ["not matched: " + "  ".join(unmatched)] if unmatched else []
    return "\n".join([*lines, "", layer_map_table(result)])


def layer_map_table(result: dict[str, Any]) -> str:
    """The layer map of a result, and what it leaves out."""
    rows = [
        [layer, ", ".join(f"{teacher_layer} ({weight:.2f})" for teacher_layer, weight in entry)]
        for layer, entry in result["layer_mapping"].items()
    ]
    left = result["unused_teacher_layers"]
    note = "every teacher layer has a part" if not left else "unused teacher layers: " + ", ".join(map(str, left))
    return f"{table(rows, ['student layer', 'teacher layers (weight)'])}\n{note}"
