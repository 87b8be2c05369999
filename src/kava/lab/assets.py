"""Models, data sets, stores and files that runs of a recipe load: whether they are on this machine, and fetching them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from kava.backbone.cached import own_copy, weights_problem
from kava.backbone.load import SHIPPED, foreign_model, load_tokenizer, locate, teacher_model
from kava.config import DatasetConfig, ModelConfig, Recipe, TeacherSpec
from kava.console import tell
from kava.data.export import export_name, export_train, published
from kava.data.generator import BUILT_IN
from kava.data.hub import Repo, absent, cache, fetch, missing_parts, model_repo, plan, snapshot
from kava.data.load import load_examples
from kava.data.places import data_repo, open_set
from kava.errors import DataError, KavaError, ModelError
from kava.evaluation.eval_sets import load_eval_set
from kava.teachers.manifest import read_manifest
from kava.teachers.store import missing_shards

HubPart = tuple[Repo, str | None]  # a repository of the hub; of a data set its configuration, of a model its .gguf file


@dataclass(frozen=True)
class Asset:
    """Something that runs load. `locate` returns where it is, or raises what is wrong with it; `hub` is what to fetch."""

    kind: str
    name: str
    role: str
    locate: Callable[[], str]
    hub: HubPart | None = None

    def check(self, fetch_error: str | None = None) -> dict[str, str | None]:
        """Its kind, name and role; its place, or the problem (with `fetch_error`, why it could not be fetched)."""
        try:
            place, problem = self.locate(), None
        except KavaError as error:
            place, problem = None, fetch_error or error.message
            if fetch_error is None and self.hub is not None and snapshot(self.hub[0]) is None:
                problem = absent(self.hub[0]) + (", nor in ./datasets" if self.kind == "data set" else "")
        return {"kind": self.kind, "name": self.name, "role": self.role, "place": place, "problem": problem}


def merged(assets: Iterable[Asset]) -> list[Asset]:
    """Each asset once, with all its roles; it is checked once for each use: training and evaluation read other parts."""
    groups: dict[tuple[Any, ...], list[Asset]] = {}
    for asset in assets:
        groups.setdefault((asset.kind, asset.name, asset.hub), []).append(asset)
    return [
        replace(same[0], role=", ".join(dict.fromkeys(use.role for use in same)), locate=partial(_locate_all, same))
        for same in groups.values()
    ]


def _locate_all(uses: list[Asset]) -> str:
    return "; ".join(dict.fromkeys([use.locate() for use in uses]))


def needed_assets(recipe: Recipe) -> Iterator[Asset]:
    """Everything that training, validation and evaluation of a recipe read."""
    yield from _models(recipe)
    yield data_asset(recipe.dataset, "training")
    for name in recipe.evaluation.datasets:
        config = recipe.dataset.config if name == recipe.dataset.name else None
        yield Asset("data set", name, "evaluation", partial(_eval_set, recipe, name), data_repo(name, config))
    files = [("mixture.layer_map_files", name) for name in recipe.mixture.layer_map_files]
    if recipe.training.start_from is not None:
        files.insert(0, ("training.start_from", recipe.training.start_from))
    yield from (Asset("file", name, key, partial(_file, name)) for key, name in files)


def model_asset(model: ModelConfig, role: str) -> Asset:
    repo = _repo(model)
    return Asset(
        "model", model.name, role, lambda: str(_model(model)), None if repo is None else (repo, model.gguf_file)
    )


def data_asset(dataset: DatasetConfig, role: str) -> Asset:
    return Asset("data set", dataset.name, role, partial(_data, dataset), data_repo(dataset.name, dataset.config))


def _models(recipe: Recipe) -> Iterator[Asset]:
    yield model_asset(recipe.model, "student")
    for spec in recipe.mixture.teachers if recipe.mixture.on else ():
        if spec.store is None:
            yield model_asset(foreign_model(spec, recipe.model), f"teacher {spec.label}")
        else:
            yield Asset("store", spec.store, f"teacher {spec.label}", partial(_store, spec.store, spec))
    if recipe.explicit.enabled and not recipe.mixture.on:
        store = recipe.teacher.store
        if store is None:
            yield model_asset(teacher_model(recipe), "teacher")
        else:
            yield Asset("store", store, "teacher", partial(_store, store, None))


def _repo(model: ModelConfig) -> Repo | None:
    """The hub repository that a model comes from; None if it is a folder."""
    return None if own_copy(model.name, model.gguf_file) else model_repo(model.name, model.revision)


def _model(model: ModelConfig, weights: bool = True) -> Path:
    """The folder of a model that loads without a network."""
    repo = _repo(model)
    folder = Path(locate(model.name, model.gguf_file)).expanduser() if repo is None else snapshot(repo)
    if folder is None or not folder.is_dir():
        raise ModelError("there is no such folder" if repo is None else absent(repo))
    if model.gguf_file is None:
        _check_config(folder)
    if (weights or model.gguf_file) and (problem := weights_problem(folder, model.gguf_file)):
        raise ModelError(f"{folder}: {problem}")
    load_tokenizer(folder, model.model_copy(update={"revision": None}))
    return SHIPPED.get(model.name, folder)


def _check_config(folder: Path) -> None:
    """Refuses a model's folder without a config.json that can be read."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} is torn ({error})") from error


def _data(dataset: DatasetConfig) -> str:
    """Reads every row that training reads; of a stream the first 100."""
    if dataset.name in BUILT_IN:
        return "built in"
    opened = open_set(dataset.name, dataset.config)
    place = Path(opened.place)
    if parts := missing_parts(place) if place.is_dir() else []:  # x-00001-of-00004: the rows alone would not tell
        raise DataError(f"{place}: {', '.join(parts)} missing")
    rows = load_examples(dataset.model_copy(update={"val_size": 0, "subset_size": None}), "train")
    count = sum(1 for _ in islice(rows, 100)) if dataset.streaming else len(list(rows))
    if "validation" in opened.splits:
        load_examples(dataset, "validation")
    return f"{opened.place} ({'at least ' if dataset.streaming else ''}{count} training rows)"


def _eval_set(recipe: Recipe, name: str) -> str:
    if name in BUILT_IN:
        return "built in"
    return f"{len(load_eval_set(recipe, name).examples)} questions"


def _store(store: str, spec: TeacherSpec | None) -> str:
    """The folder of a teacher store with all of its shards; a mixture (`spec`) also loads its teacher's tokenizer."""
    folder = Path(store)
    if not folder.is_dir():
        raise DataError("there is no such folder")
    manifest = read_manifest(folder)
    if shards := missing_shards(folder, manifest):
        count = f"{len(shards)} of {manifest.num_shards}"
        raise DataError(f"{folder}: {count} shards are missing, the first is {shards[0]}")
    if spec is not None:
        name, revision = spec.model or manifest.teacher["name"], spec.revision or manifest.teacher["revision"]
        gguf_file = spec.gguf_file or manifest.teacher.get("gguf_file")
        trust = spec.trust_remote_code
        wanted = {"name": name, "revision": revision, "gguf_file": gguf_file, "trust_remote_code": trust}
        model = ModelConfig().model_copy(update=wanted)
        try:
            _model(model, weights=False)
        except KavaError as error:
            raise DataError(f"{folder} needs the tokenizer of {model.name}: {error.message}") from error
    return f"{folder} ({manifest.num_examples} examples)"


def _file(name: str) -> str:
    if not Path(name).expanduser().exists():
        raise DataError("there is no such file or folder")
    return name


def fetch_missing(assets: Iterable[Asset], quiet: bool) -> tuple[list[str], dict[HubPart, str]]:
    """Download into the hub's cache what is not complete there: the names, and why others could not be fetched.

    A failed download stops no other one, and an earlier copy stays as it was.
    """
    fetched: list[str] = []
    errors: dict[HubPart, str] = {}
    if constants.HF_HUB_OFFLINE:
        tell("note: HF_HUB_OFFLINE is set: the hub is not asked")
        return fetched, errors
    for repo, config in dict.fromkeys(asset.hub for asset in assets if asset.hub is not None):
        try:
            planned = plan(repo, config)
            size = f"{len(planned.missing)} of {len(planned.files)} files, {planned.bytes / 1e9:.2f} GB"
            if not quiet:
                print(f"{repo.kind} {repo.name}: {size} to fetch into {cache()}", flush=True)
            fetch(planned, progress=not quiet)
        except (ModelError, DataError) as error:
            errors[repo, config] = f"{error.message}; {error.hint}"
            tell(f"warning: {errors[repo, config]}")
            continue
        fetched += [repo.name] if planned.missing else []
    return fetched, errors


def exported_files(names: Iterable[str], config: str | None) -> dict[str, Path]:
    """The file in data/ that each training set is exported to."""
    return {name: Path("data") / export_name(name, config) for name in dict.fromkeys(names)}


def export_training_rows(targets: Mapping[str, Path], config: str | None, quiet: bool) -> Mapping[str, int]:
    """Write each training set as prompts and targets into its file of `targets`; file -> number of rows."""
    written: dict[str, int] = {}
    for name, path in targets.items():
        written[str(path)] = count = export_train(name, config, path, progress=not quiet)
        if not quiet:
            print(f"wrote {count} rows to {path}")
        whole = published(name)
        if whole is not None and count != whole:
            tell(f"warning: {name} was published with {whole} training rows, this one has {count}")
    return written
