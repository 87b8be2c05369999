"""`kava export CHECKPOINT DIR`: a student as an ordinary folder of its family with a small latent head, for other programs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kava import __version__
from kava.backbone.artifact import load_student
from kava.backbone.card import CARD, file_hash, method_of
from kava.backbone.plain import check_plain, plain_bytes, save_plain, stored_names
from kava.backbone.silence_libraries import silence_libraries
from kava.config import Recipe
from kava.config.trust import code_allowed
from kava.errors import ConfigError, RunError
from kava.export.card import is_unchanged_export, write_export_card
from kava.export.head import generation_settings, prompt_tokenizer, write_head, write_source
from kava.export.parity import answers_of, exported_answers
from kava.files import new_folder
from kava.infer.checks import own_mode, stored_recipe
from kava.infer.student import Student
from kava.outputs import check_folder
from kava.progress import progress

DTYPES = ("float32", "bfloat16", "float16")
EXACT = ("float32", "float64")  # with these, answers must be equal; others round so much that a near tie may turn
SPARE = 32 << 20  # bytes on the disk for tokenizer and settings
MIB = 2**20


@dataclass(frozen=True)
class Exported:
    """What was written; `equal` of `compared` questions were answered token for token as the student answers them."""

    folder: Path
    dtype: str
    tensors: int
    compared: int
    equal: int
    card: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.equal == self.compared or self.dtype not in EXACT


def check_target(folder: Path) -> None:
    """Refuses a folder that exists, unless it is empty or an export with nothing added."""
    check_folder("DIR", folder)
    if folder.is_dir() and any(folder.iterdir()) and not is_unchanged_export(folder):
        problem = f"DIR {folder} exists, and kava export did not write it, or it was changed since"
        raise ConfigError(problem, "name a new folder")


def planned_sizes(
    checkpoint: Path, recipe: Recipe, dtype: str | None, trust_remote_code: bool = False
) -> dict[str, int]:
    """Bytes of the large files that an export will write; reads no weights."""
    with code_allowed(trust_remote_code):
        weights, width = plain_bytes(checkpoint, recipe, _dtype(dtype))
    projection = recipe.loss.use_projection and recipe.latent.feeds_back and not recipe.explicit.enabled
    return {"weights": weights, "latent_head": (2 * width * width + 4 * width) * 4 if projection else 0}


def export_folder(
    checkpoint: str | Path,
    folder: str | Path,
    dtype: str | None = None,
    questions: Sequence[str] = (),
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Writes the student in `checkpoint` to `folder`, for transformers alone and for engines that take prompt embeddings.

    dtype: of the weights; None: as they are. `questions` are asked of student and folder, greedily, and compared.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    recipe = stored_recipe(checkpoint)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r} is not one of {', '.join(DTYPES)}")
    check_target(folder)
    _check_room(folder, sum(planned_sizes(checkpoint, recipe, dtype, trust_remote_code).values()))
    silence_libraries()
    model, tokenizer, recipe = load_student(checkpoint, base, trust_remote_code)
    student = Student(model, tokenizer, recipe, checkpoint)
    limit = recipe.evaluation.max_new_tokens
    wanted = answers_of(student, questions, limit) if questions else []
    student = Student(model, tokenizer, recipe, checkpoint)  # without the copy that has answered
    with progress(f"exporting to {folder.name}"), new_folder(folder) as partial:
        save_plain(
            model, prompt_tokenizer(tokenizer, recipe), partial, _dtype(dtype),
            **generation_settings(student),
        )  # fmt: skip
        tensors = check_plain(model.causal_lm, partial)
        write_head(student, partial, stored_names(partial))
        answers = exported_answers(partial, student, questions, limit) if questions else []
        write_source(partial)
        equal = sum(answer == told for answer, told in zip(answers, wanted, strict=True))
        written = str(next(model.causal_lm.parameters()).dtype).removeprefix("torch.")
        facts = {
            "kava_version": __version__,
            "method": method_of(recipe),
            "mode": own_mode(recipe),
            "base": {"name": recipe.model.name, "revision": recipe.model.revision},
            "checkpoint_sha256": file_hash(checkpoint / CARD),
            "dtype": written,
            "tensors": tensors,
            "check": {"questions": len(wanted), "equal": equal},
        }
        card = write_export_card(partial, facts)
    return Exported(folder, written, tensors, len(wanted), equal, card)


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _check_room(folder: Path, needed: int) -> None:
    """Refuses a disk that is too full, before anything is loaded."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed + SPARE > free:
        problem = f"DIR {folder} needs {needed / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB are free on its disk"
        raise RunError(problem, "free some space, name a folder on another disk, or take --dtype bfloat16")
