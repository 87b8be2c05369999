"""What is known of a student, read from its folder and its run's files: nothing else may stand in its card."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.backbone.card import StudentCard, check_files
from kava.config import Recipe
from kava.config.typed_file import read_dict
from kava.evaluation.result_files import results_folder
from kava.files import looks_like_path
from kava.infer.checkpoint import HUB_NAME
from kava.infer.checks import stored_recipe
from kava.run_files import AGAIN, ResultFields, read_meta

_SEED = re.compile(r"(.*seed_)\d+")


@dataclass(frozen=True)
class CardScore:
    """One results file."""

    file: Path
    fields: dict[str, Any]

    @property
    def correct(self) -> int:
        return round(float(self.fields["correct"]))

    @property
    def total(self) -> int:
        return int(self.fields["total"])


@dataclass(frozen=True)
class StudentFacts:
    """`scores`: results of this very checkpoint; `siblings`: those of other seeds of the same recipe, beside it; `stale`:
    results files that another checkpoint's answers are in, which are left out."""

    folder: Path
    card: StudentCard
    recipe: Recipe
    meta: dict[str, Any]
    scores: tuple[CardScore, ...]
    siblings: tuple[CardScore, ...]
    stale: tuple[Path, ...]

    @property
    def base(self) -> str:
        """The base model as the recipe names it; of a path its last part only."""
        name = self.recipe.model.name
        return Path(name).name if looks_like_path(name) or Path(name).is_dir() else name

    @property
    def base_on_hub(self) -> bool:
        return self.base == self.recipe.model.name and HUB_NAME.fullmatch(self.base) is not None

    @property
    def command(self) -> list[str] | None:
        return self.meta.get("command")


def student_facts(folder: Path) -> StudentFacts:
    """Reads a student whose files are all as saved, and what its run has written beside it."""
    recipe = stored_recipe(folder)  # its errors say what the folder is instead
    card = check_files(folder)
    results = results_folder(folder)
    run = folder if (folder / "meta.json").is_file() else folder.resolve().parent
    every = [CardScore(path, read_dict(path, ResultFields, AGAIN)) for path in _results(results)]
    scores = [score for score in every if score.fields.get("step") == card.step and _counted(score)]
    stale = [score.file for score in every if score.fields.get("step") != card.step]
    return StudentFacts(
        folder, card, recipe, read_meta(run), tuple(scores), tuple(_siblings(results, recipe, scores)), tuple(stale)
    )


def _results(folder: Path) -> list[Path]:
    return sorted(folder.glob("results_*.yaml"))


def _counted(score: CardScore) -> bool:
    return all(score.fields.get(name) is not None for name in ("dataset", "mode", "correct", "total"))


def _siblings(results: Path, recipe: Recipe, scores: list[CardScore]) -> list[CardScore]:
    """Results under the same file names in folders beside `results` that differ in the seed only."""
    whole = results.resolve()
    match = _SEED.fullmatch(whole.name)
    if match is None:
        return []
    names = {score.file.name for score in scores}
    others = [
        folder
        for folder in sorted(whole.parent.glob(f"{match[1]}*"))
        if _SEED.fullmatch(folder.name) and folder != whole
    ]
    paths = [path for folder in others for path in _results(folder) if path.name in names]
    siblings = [CardScore(path, read_dict(path, ResultFields, AGAIN)) for path in paths]
    hashes = {score.file.name: score.fields.get("data_sha256") for score in scores}
    return [
        score
        for score in siblings
        if _counted(score)
        and score.fields.get("config") == recipe.about.name
        and score.fields.get("data_sha256") == hashes[score.file.name]
    ]
