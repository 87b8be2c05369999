"""What runs of a recipe load, and whether it is on this machine: models, data sets, stores, files. Asks no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kava.errors import DataError, KavaError, ModelError

if TYPE_CHECKING:
    from kava.config import DatasetConfig, ModelConfig, Recipe, TeacherSpec
    from kava.data.hub import Repo


@dataclass(frozen=True)
class Need:
    """One thing that runs load. `look` returns where it is, or raises what is wrong with it; `hub` is what to fetch."""

    kind: str
    name: str
    role: str
    look: Callable[[], str]
    hub: tuple[Repo, str | None] | None = None  # and of a data set its configuration

    def found(self, why_not: str | None = None) -> Found:
        """`why_not`: what kept it from being fetched, where it turns out to be missing."""
        try:
            return Found(self.kind, self.name, self.role, self.look(), None)
        except KavaError as error:
            return Found(self.kind, self.name, self.role, None, why_not or self._absent() or error.message)

    def _absent(self) -> str | None:
        """That nothing of it is in the hub's cache."""
        from kava.data.hub import absent, snapshot

        if self.hub is None or snapshot(self.hub[0]) is not None:
            return None
        return absent(self.hub[0]) + (", nor in ./datasets" if self.kind == "data set" else "")


@dataclass(frozen=True)
class Found:
    """A need that was looked at: its place, or the problem."""

    kind: str
    name: str
    role: str
    place: str | None
    problem: str | None

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)


def merged(needs: Iterable[Need]) -> list[Need]:
    """Each thing once, with all its roles."""
    groups: dict[tuple[Any, ...], list[Need]] = {}
    for need in needs:
        groups.setdefault((need.kind, need.name, need.hub), []).append(need)
    return [
        replace(same[0], role=", ".join(dict.fromkeys(need.role for need in same)), look=partial(_look_all, same))
        for same in groups.values()
    ]


def _look_all(same: list[Need]) -> str:
    """Looks once for each use: training and evaluation read other parts of one data set."""
    return "; ".join(dict.fromkeys([need.look() for need in same]))


def needs_of(recipe: Recipe) -> Iterator[Need]:
    """Everything that training, validation and evaluation of a recipe read."""
    from kava.data.hub import data_repo

    yield from _models(recipe)
    yield data_need(recipe.dataset, "training")
    for name in recipe.evaluation.datasets:
        config = recipe.dataset.config if name == recipe.dataset.name else None
        yield Need("data set", name, "evaluation", partial(_evaluation, recipe, name), data_repo(name, config))
    if recipe.training.start_from is not None:
        yield file_need(recipe.training.start_from, "training.start_from")
    for name in recipe.mixture.layer_map_files:
        yield file_need(name, "mixture.layer_map_files")


def model_need(model: ModelConfig, role: str) -> Need:
    from kava.data.hub import model_repo

    repo = model_repo(model.name, model.revision)
    return Need("model", model.name, role, lambda: str(_model(model)), None if repo is None else (repo, None))


def data_need(dataset: DatasetConfig, role: str) -> Need:
    from kava.data.hub import data_repo

    hub = data_repo(dataset.name, dataset.config)
    return Need("data set", dataset.name, role, lambda: _data(dataset), hub)


def file_need(name: str, role: str) -> Need:
    return Need("file", name, role, lambda: _file(name))


def _models(recipe: Recipe) -> Iterator[Need]:
    from kava.backbone.load import foreign_model, spec_of, teacher_model

    yield model_need(recipe.model, "student")
    if recipe.mixture.on:
        for spec in recipe.mixture.teachers:
            role = f"teacher {spec.label}"
            if spec.store is None:
                yield model_need(foreign_model(spec, recipe.model), role)
            else:
                yield Need("store", spec.store, role, partial(_store, spec, True))
    elif recipe.explicit.enabled and recipe.teacher.store is None:
        yield model_need(teacher_model(recipe), "teacher")
    elif recipe.explicit.enabled:
        spec = spec_of(recipe).model_copy(update={"store": recipe.teacher.store})
        yield Need("store", str(spec.store), "teacher", partial(_store, spec, False))


def _model(model: ModelConfig, weights: bool = True) -> Path:
    """The folder of a model that loads without a network."""
    from kava.backbone.cached import weights_problem
    from kava.backbone.load import SHIPPED, load_tokenizer, locate
    from kava.data.hub import absent, model_repo, snapshot

    repo = model_repo(model.name, model.revision)
    folder = Path(locate(model.name)).expanduser() if repo is None else snapshot(repo)
    if folder is None or not folder.is_dir():
        raise ModelError("there is no such folder" if repo is None else absent(repo))
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} is torn ({error})") from error
    if weights and (problem := weights_problem(folder)):
        raise ModelError(f"{folder}: {problem}")
    load_tokenizer(folder, model.model_copy(update={"revision": None}))
    return SHIPPED.get(model.name, folder)


def _data(dataset: DatasetConfig) -> str:
    """Reads what training reads, every row; of a stream the beginning."""
    from kava.data.generator import BUILT_IN
    from kava.data.load import load_examples
    from kava.data.places import open_set

    if dataset.name in BUILT_IN:
        return "built in"
    opened = open_set(dataset.name, dataset.config)
    _whole(Path(opened.place))
    rows = load_examples(dataset.model_copy(update={"val_size": 0, "subset_size": None}), "train")
    count = sum(1 for _ in islice(rows, 100)) if dataset.streaming else len(list(rows))
    if "validation" in opened.splits:
        load_examples(dataset, "validation")
    return f"{opened.place} ({'at least ' if dataset.streaming else ''}{count} training rows)"


def _evaluation(recipe: Recipe, name: str) -> str:
    from kava.data.generator import BUILT_IN
    from kava.evaluation.eval_sets import load_eval_set

    if name in BUILT_IN:
        return "built in"
    return f"{len(load_eval_set(recipe, name).examples)} questions"


def _whole(place: Path) -> None:
    """Refuses a folder of which files x-00001-of-00004 some are not there; rows alone would not tell."""
    from kava.data.hub import missing_parts

    lacking = missing_parts(place) if place.is_dir() else []
    if lacking:
        raise DataError(f"{place}: {', '.join(lacking)} missing")


def _store(spec: TeacherSpec, own_tokenizer: bool) -> str:
    """The folder of a teacher store with all of its shards; a mixture also loads its teacher's tokenizer."""
    from kava.config import ModelConfig
    from kava.teachers.manifest import read_manifest
    from kava.teachers.store import missing_shards

    folder = Path(str(spec.store))
    if not folder.is_dir():
        raise DataError("there is no such folder")
    manifest = read_manifest(folder)
    if lacking := missing_shards(folder, manifest):
        raise DataError(
            f"{folder}: {len(lacking)} of {manifest.num_shards} shards are missing, the first is {lacking[0]}"
        )
    if own_tokenizer:
        name, revision = manifest.teacher["name"], manifest.teacher["revision"]
        model = ModelConfig(name=spec.model or name, revision=spec.revision or revision)
        try:
            _model(model.model_copy(update={"trust_remote_code": spec.trust_remote_code}), weights=False)
        except KavaError as error:
            raise DataError(f"{folder} needs the tokenizer of {model.name}: {error.message}") from error
    return f"{folder} ({manifest.num_examples} examples)"


def _file(name: str) -> str:
    if not Path(name).expanduser().exists():
        raise DataError("there is no such file or folder")
    return name
