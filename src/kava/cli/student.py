"""What the verbs that load a student share: its flags, and the recipe in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kava.errors import CheckpointError

if TYPE_CHECKING:
    from kava.config import Recipe

Checkpoint = Annotated[
    Path,
    typer.Option("--checkpoint", "--checkpoint_dir", help="a student's folder, such as a run's best_checkpoint"),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="longest answer; default: the recipe's")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="questions at once; changes nothing but the time")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Base = Annotated[str | None, typer.Option(help="where the base model of a LoRA student is, if not where it was")]
Quiet = Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")]


def stored_recipe(checkpoint: Path) -> Recipe:
    """The recipe in a student's folder, or an error that says what the folder is instead."""
    from kava.config import load_recipe

    if not checkpoint.is_dir():
        what = "is not a folder" if checkpoint.exists() else "does not exist"
        raise CheckpointError(f"checkpoint {checkpoint} {what}", "give a student's folder, such as RUN/best_checkpoint")
    if not (checkpoint / "kava.json").is_file():
        raise CheckpointError(f"{checkpoint} is not a student's folder: it {_instead(checkpoint)}", _hint(checkpoint))
    if not (checkpoint / "recipe.yaml").is_file():
        raise CheckpointError(f"{checkpoint} has no recipe.yaml", "the folder is torn; use another")
    return load_recipe(checkpoint / "recipe.yaml")


def own_mode(recipe: Recipe) -> str:
    """How a student answers where nothing else is asked for: as it was trained."""
    return "cot" if recipe.explicit.enabled else "latent"


def _instead(folder: Path) -> str:
    if not any(folder.iterdir()):
        return "is empty"
    if (folder / "adapter_config.json").is_file():
        return "has no kava.json; it is an adapter of peft"
    if (folder / "config.json").is_file():
        return "has no kava.json; it is a model of transformers"
    return "has no kava.json"


def _hint(folder: Path) -> str:
    inside = sorted([*folder.glob("*/kava.json"), *folder.glob("*/best_checkpoint/kava.json")])
    if inside:
        return f"give a student inside it: {inside[0].parent}"
    if (folder / "config.json").is_file():
        return f"train a student from it: kava train --config ... model.name={folder}"
    return "give a run's best_checkpoint folder"
