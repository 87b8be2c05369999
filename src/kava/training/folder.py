"""A run's folder: locked by one process, described before the first step, never mixed with another run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.backbone.card import read_card
from kava.config import Recipe, differing, load_recipe, save_recipe
from kava.errors import KavaError, RunError
from kava.files import copy_folder, make_folder, remove, sole_owner, sweep, write_json
from kava.outputs import Output, begins, check_folder, check_outputs, is_dated
from kava.provenance import surroundings
from kava.run_files import AGAIN, read_log, read_meta
from kava.training import checkpoint

RECIPE, META = "recipe.yaml", "meta.json"
LOG, BEST = "log.jsonl", "best_checkpoint"
LOCK, TRAIN_LOG = ".lock", "train.log"
LOGS = {LOG: begins('{"step":'), TRAIN_LOG: is_dated, "training_log.txt": begins("step ", "epoch ")}
PATIENCE = 60.0  # seconds to wait for a stopped run that is still saving


@dataclass(frozen=True)
class TrainResult:
    """A run: its folder, its updates, and the best validation value of the number that chooses the best checkpoint."""

    output_dir: Path
    steps: int
    metric: str  # accuracy, or ce on the explicit line
    best: float | None  # None: nothing to validate on
    exit_code: int = 0  # 128 + signal where a signal ended the run early

    @property
    def finished(self) -> bool:
        """False where a signal stopped the run; resume="auto" continues it."""
        return self.exit_code == 0

    @property
    def best_checkpoint(self) -> Path | None:
        """The folder of the best student; None before the first validation."""
        folder = self.output_dir / BEST
        return folder if folder.is_dir() else None

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl: losses ("loss", "kv", ...) and validations ("eval_accuracy", ...) by "step"."""
        return read_log(self.output_dir)

    @property
    def facts(self) -> dict[str, Any]:
        """Folder, updates and best value, as `kava train --quiet` prints them."""
        return {"output_dir": str(self.output_dir), "steps": self.steps, f"best_{self.metric}": self.best}


def default_folder(recipe: Recipe, suffix: str = "") -> Path:
    """outputs/<recipe>_seed_<seed>."""
    return Path("outputs") / f"{recipe.about.name or 'run'}_seed_{recipe.system.seed}{suffix}"


def finished_run(folder: Path) -> TrainResult | None:
    """The result of the finished run in this folder, from its meta.json; None where there is none."""
    meta = read_meta(folder)
    if not meta.get("finished"):
        return None
    metric = "accuracy" if "best_accuracy" in meta else "ce"
    if meta.get("steps") is None:
        raise RunError(f"{folder / META}: steps is missing", AGAIN)
    return TrainResult(folder, meta["steps"], metric, meta.get(f"best_{metric}"))


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: str | None) -> Iterator[None]:
    """Holds the run's folder for this process; raises where it is in use, or holds another run or other settings.

    Under torchrun rank 0 claims it for all. A run that is refused leaves no folder behind.
    """
    check_folder("the output folder", folder)
    check_outputs([Output("the log", folder / name, is_ours) for name, is_ours in LOGS.items()])
    is_new = not folder.is_dir() or not any(folder.iterdir())
    made = [place for place in (folder, *folder.parents) if not place.is_dir()]
    make_folder(folder)
    try:
        with sole_owner(folder / LOCK, PATIENCE if resume else 0.0):
            sweep(folder)
            _refuse_another_run(folder, recipe, resume)
            yield
    except KavaError:
        if is_new and {path.name for path in folder.iterdir()} <= {LOCK, TRAIN_LOG}:
            for name in (LOCK, TRAIN_LOG):
                remove(folder / name)
            with suppress(OSError):  # somebody else has put something there
                for place in made:
                    place.rmdir()
        raise


def _refuse_another_run(folder: Path, recipe: Recipe, resume: str | None) -> None:
    stored = folder / RECIPE
    if not stored.exists():
        if resume is None and any(folder.glob("checkpoint-*")):
            raise RunError(f"{folder} holds checkpoints but no {RECIPE}", "choose another --output_dir")
        return
    if resume is None:
        hint = "continue it with --resume auto, or choose another --output_dir"
        raise RunError(f"{folder} already holds a run", hint)
    if differ := differing(load_recipe(stored), recipe):
        problem = f"{folder} was run with other settings: {'; '.join(differ[:5])}"
        raise RunError(problem, "continue with the same settings, or choose another --output_dir")


def refuse_other_data(start: Path, card: dict[str, Any]) -> None:
    """Raises where the checkpoint was made on other training data, as far as that is known (of a stream it is not)."""
    before = read_card(start).data_sha256 or read_meta(start.parent).get("data", {}).get("sha256")
    if before is not None and before != card.get("sha256"):
        message = f"{start} was made on other training data (sha256 {before}, now {card.get('sha256')})"
        raise RunError(message, "put the data back, or begin a new run without --resume")


def bring_best(start: Path, folder: Path) -> None:
    """Copies the best student so far into the folder of a run that continues a checkpoint of another folder."""
    best = start.parent / BEST
    if (folder / BEST).exists() or not best.is_dir() or (read_card(best).step or 0) > checkpoint.step_of(start):
        return
    copy_folder(best, folder / BEST)


def describe(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Writes recipe.yaml and meta.json before the first step; a resumed run must have the data it began with."""
    if meta := read_meta(folder):
        before, now = meta.get("data", {}).get("sha256"), facts["data"].get("sha256")
        if before != now:
            message = f"{folder} was begun with other training data (sha256 {before}, now {now})"
            raise RunError(message, "put the data back, or choose another --output_dir")
    save_recipe(recipe, folder / RECIPE)
    run = {"recipe": recipe.about.name, "seed": recipe.system.seed, "model": recipe.model.name}
    run |= {"line": "explicit" if recipe.explicit.enabled else "latent", "data": recipe.dataset.name}
    write_json(folder / META, {**surroundings(), "run": run, **facts})


def update(folder: Path, **facts: Any) -> None:
    """Adds facts to meta.json."""
    write_json(folder / META, read_meta(folder) | facts)
