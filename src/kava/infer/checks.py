"""What may be asked of a student: its folder, questions, modes and numbers. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kava.backbone.card import EXPORT, RECIPE, check_files
from kava.characters import check_characters
from kava.config import MODULAR, Recipe, explain, load_recipe, show
from kava.errors import CheckpointError, ConfigError, DataError
from kava.registry import nearest

MODES = ("latent", "cot", "direct")  # think in latents, write the steps, or neither
STUDENT_FILES = ("kava.json", "recipe.yaml", "*.safetensors", "*config.json", "token*", "vocab*", "merges*", "*.pt*")
# settings of the network and of the text it reads; the others are only about training
SHAPING = (
    "model.name", "model.revision", "model.gguf_file", "dataset.cot_type", "dataset.prompt", "latent.", "loss.use_projection",
    "lora.enabled", "lora.r", "lora.alpha", "lora.target_modules",
)  # fmt: skip


def stored_recipe(checkpoint: str | Path) -> Recipe:
    """The recipe in a student's folder, or an error that says what the folder is instead."""
    if not isinstance(checkpoint, str | Path):
        raise CheckpointError(f"a {type(checkpoint).__name__} is no student's folder", "give its path")
    folder = Path(checkpoint)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {folder} {what}", "give a student's folder, such as RUN/best_checkpoint")
    if not (folder / "kava.json").is_file():
        raise _no_student(folder)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} has no recipe.yaml", "the folder is torn; use another")
    check_files(folder, [RECIPE])
    return load_recipe(folder / "recipe.yaml")


def student_files(folder: Path) -> list[Path]:
    """The files that make up a student, for commands whose outputs must be none of them."""
    return [path for pattern in STUDENT_FILES for path in folder.glob(pattern)]


def _no_student(folder: Path) -> CheckpointError:
    """The error that says what the folder is, and where a student may be found."""
    what, hint = "has no kava.json", "give a run's best_checkpoint folder"
    if (folder / "config.json").is_file():
        what += "; it is a model of transformers"
        hint = f"train a student from it: kava train --config ... model.name={folder}"
    if (folder / EXPORT).is_file():
        what = "has no kava.json; it is a student that kava export made for other programs"
        hint = "give the checkpoint that it was made of, such as RUN/best_checkpoint; docs/export.md says how to ask it"
    elif (folder / "adapter_config.json").is_file():
        what = "has no kava.json; it is an adapter of peft"
    elif not any(folder.iterdir()):
        what = "is empty"
    elif (folder / ".jobs").is_dir() and not (folder / "recipe.yaml").is_file():  # kava submit has just made it
        what, hint = "is that of a job which has not begun", f"kava jobs {folder} shows how it does"
    if inside := sorted([*folder.glob("*/kava.json"), *folder.glob("*/best_checkpoint/kava.json")]):
        hint = f"give a student inside it: {inside[0].parent}"
    return CheckpointError(f"{folder} is not a student's folder: it {what}", hint)


def check_config(config: str, stored: Recipe) -> None:
    """The recipe `config` must describe the same network and text as the checkpoint's own."""
    wanted, own = ({row.key: row.value for row in explain(recipe)} for recipe in (load_recipe(config), stored))
    keys = [key for key in own if key.startswith(SHAPING) and not (key.startswith("lora.") and not own["lora.enabled"])]
    if own["rkv.full_slots"]:  # then training counted the latents itself
        keys.remove("latent.num_tokens")
    if differ := [key for key in dict.fromkeys(["lora.enabled", *keys]) if wanted[key] != own[key]]:
        key = differ[0]
        more = f" (and {len(differ) - 1} more keys)" if len(differ) > 1 else ""
        raise ConfigError(
            f"--config {config}: {key} is {show(wanted[key])}, the checkpoint was trained with {show(own[key])}{more}",
            "leave --config out (the checkpoint knows its recipe), or give the checkpoint that belongs to it",
        )


def check_questions(questions: Any) -> None:
    """Raises unless `questions` is a list of texts that are not blank."""
    if not isinstance(questions, Sequence) or isinstance(questions, str | bytes | Mapping):
        hint = "write [question]" if isinstance(questions, str) else 'give a list: ["3+4?", ...]'
        raise DataError(f"questions is a {type(questions).__name__}, not a list of texts", hint)
    for number, question in enumerate(questions, 1):
        if not isinstance(question, str):
            raise DataError(f"question {number} is a {type(question).__name__}, not text")
        if not question.strip():
            raise DataError(f"question {number} is empty")
        check_characters(question, f"question {number}")


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises unless `value` is None or a whole number from `least` to `most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least and (most is None or value <= most)):
        limit = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} = {value!r} is not valid", f"give a whole number {limit}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises unless `value` is None or one of `choices`."""
    if value is not None and value not in choices:
        raise ConfigError(f"{name} = {value!r} is not one of {', '.join(choices)}", nearest(str(value), list(choices)))


def own_mode(recipe: Recipe) -> str:
    """The mode that the student was trained for."""
    return "cot" if recipe.explicit.enabled else "latent"


def arithmetic(recipe: Recipe) -> str | None:
    """The arithmetic of a student of built-in problems, which is not everyday's. None for others."""
    if recipe.dataset.name not in MODULAR:
        return None
    modulus = recipe.dataset.generator.modulus
    return f"this student learnt arithmetic modulo {modulus}: 3+4 is {7 % modulus}"


def untrained(recipe: Recipe, mode: str) -> str | None:
    """Why answers in this mode say little about the student: its recipe did not train them. None if it did."""
    loss = recipe.loss
    if recipe.explicit.enabled:
        return None if mode == "cot" else "not trained for: a student of the explicit line writes its steps"
    if mode == "cot":
        never = "not trained for: loss.teacher_ce was 0, so it never learnt to write steps"
        return None if loss.teacher_ce > 0 else never
    if loss.student_ce == 0:
        return "not trained for: loss.student_ce was 0, so it never learnt to answer without steps"
    if mode == "direct" and recipe.latent.num_tokens > 0:
        return f"not trained for: it was trained with {recipe.latent.num_tokens} latents before every answer"
    return None
