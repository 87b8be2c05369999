"""kava assets: models and data sets for nodes without a network - fetch them here, say what is missing."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import OVERRIDES, Overwrite, no_settings, parse_recipe_args, show_result
from kava.cli.list_flags import ListFlagCommand
from kava.cli.student import Quiet, TrustRemoteCode
from kava.config import DatasetConfig, ModelConfig, Recipe
from kava.config.typed_file import checked
from kava.data.hub import move_cache
from kava.errors import ConfigError
from kava.outputs import Output, check_folder, check_outputs, rows_have
from kava.text_table import table

if TYPE_CHECKING:
    from kava.lab.assets import Asset

HELP = "Models and data sets for nodes without a network: fetch them, or say what is missing."
app = typer.Typer(help=HELP, add_completion=False, rich_markup_mode=None)

Configs = Annotated[
    list[str] | None,
    typer.Option("--config", "--recipe", help="recipes: all that their runs load; section.key=value may follow"),
]
Models = Annotated[list[str] | None, typer.Option("--model", help="models: hub names or local folders")]
Datasets = Annotated[
    list[str] | None, typer.Option("--dataset", help="data sets: hub names, known names (gsm8k), files or folders")
]
DatasetConfigName = Annotated[
    str | None, typer.Option("--dataset_config", help="configuration of the hub data sets of --dataset, e.g. main")
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache_dir", help="use this folder as the hub's cache (default: HF_HUB_CACHE, else HF_HOME/hub)"),
]


@app.command("fetch", cls=ListFlagCommand, context_settings=OVERRIDES)
def fetch(
    ctx: typer.Context,
    model: Models = None,
    dataset: Datasets = None,
    dataset_config: DatasetConfigName = None,
    config: Configs = None,
    cache_dir: CacheDir = None,
    export_jsonl: Annotated[
        bool, typer.Option(help="also write the training rows (prompt, target) to data/<set>[_<config>]_train.jsonl")
    ] = False,
    skip_model: Annotated[bool, typer.Option(help="fetch no models")] = False,
    skip_dataset: Annotated[bool, typer.Option(help="fetch no data sets")] = False,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Download models and data sets into the hub's cache, where there is a network (HF_ENDPOINT: a mirror).

    Of a model one format of its weights, the configuration and the tokenizer; of a data set its files, or those of one
    configuration. Complete files are not downloaded again, interrupted downloads continue, and everything is checked at
    the end.
    """
    from kava.lab.assets import export_training_rows, exported_files, fetch_missing

    recipes = _recipes(config, ctx)
    if not (recipes or model or dataset):
        raise ConfigError("nothing to fetch", "name it: --model, --dataset, or --config for all that a recipe needs")
    if (skip_model and model) or (skip_dataset and dataset):
        name = "model" if skip_model and model else "dataset"
        raise ConfigError(f"--{name} and --skip_{name} contradict each other", "leave one of them out")
    if export_jsonl and (skip_dataset or not (dataset or recipes)):
        raise ConfigError("--export_jsonl writes a data set, and none is fetched", "name it: --dataset openai/gsm8k")
    names = [*(dataset or []), *(recipe.dataset.name for recipe in recipes)]
    targets = exported_files(names, dataset_config) if export_jsonl else {}
    outputs = [Output("--export_jsonl", path, rows_have("prompt", "target")) for path in targets.values()]
    check_outputs(outputs, map(Path, names), overwrite)
    if cache_dir is not None:
        check_folder("--cache_dir", cache_dir.expanduser())
    skipped = [kind for kind, skip in (("model", skip_model), ("data set", skip_dataset)) if skip]
    wanted = _wanted(recipes, model, dataset, dataset_config, cache_dir)
    wanted = [asset for asset in wanted if asset.kind not in skipped]
    fetched, errors = fetch_missing(wanted, quiet)
    checks = [asset.check(errors.get(asset.hub) if asset.hub else None) for asset in wanted]
    exported = export_training_rows(targets, dataset_config, quiet)
    note = "" if cache_dir is None else f"\n\nfor runs: export HF_HUB_CACHE={cache_dir.expanduser().absolute()}"
    return _show(checks, not errors, {"fetched": fetched, "exported": exported}, note, quiet)


@app.command("verify", cls=ListFlagCommand, context_settings=OVERRIDES)
def verify(
    ctx: typer.Context,
    config: Configs = None,
    model: Models = None,
    dataset: Datasets = None,
    dataset_config: DatasetConfigName = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> int:
    """Check whether runs would find their models and data on this machine, without any network access.

    Loads tokenizers, opens weights, reads rows. Lists everything that is missing or damaged; exit code 1 if anything is.
    """
    recipes = _recipes(config, ctx)
    if not (recipes or model or dataset):
        raise ConfigError("nothing to verify", "name it: --config RECIPE, --model or --dataset")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # of this process; runs ask unless told otherwise
    checks = [asset.check() for asset in _wanted(recipes, model, dataset, dataset_config, cache_dir)]
    missing = any(check["problem"] for check in checks)
    hint = "\n\nbring what is missing where a network is: kava assets fetch (the same flags)" if missing else ""
    return _show(checks, True, {}, hint, quiet)


def _recipes(configs: list[str] | None, ctx: typer.Context) -> list[Recipe]:
    if not configs:
        no_settings(ctx, "settings need a recipe they apply to: --config")
    return [parse_recipe_args(name, ctx) for name in dict.fromkeys(configs or [])]


def _wanted(
    recipes: list[Recipe], models: list[str] | None, datasets: list[str] | None, config: str | None, cache: Path | None
) -> "list[Asset]":
    if cache is not None:
        move_cache(str(cache.expanduser().absolute()), os.environ)
    from kava.backbone.silence_libraries import silence_libraries
    from kava.evaluation.eval_sets import cot_type_of
    from kava.lab.assets import data_asset, merged, model_asset, needed_assets

    silence_libraries()
    wanted = [asset for recipe in recipes for asset in needed_assets(recipe)]
    wanted += [
        model_asset(checked({"name": name}, ModelConfig, "--model", raises=ConfigError), "given")
        for name in models or []
    ]
    for name in datasets or []:
        cot_type = cot_type_of(name, "natural_language")
        named = {"name": name, "config": config, "cot_type": cot_type}
        wanted.append(data_asset(checked(named, DatasetConfig, "--dataset", raises=ConfigError), "given"))
    return merged(wanted)


def _show(checks: list[dict[str, Any]], fetched_all: bool, more: dict[str, Any], note: str, quiet: bool) -> int:
    """Print the checks with `more` facts; the exit code."""
    missing = sum(check["problem"] is not None for check in checks)
    rows = [
        ["ok" if problem is None else "MISSING", kind, name, role, place or problem]
        for kind, name, role, place, problem in (check.values() for check in checks)
    ]
    count = f"{missing} of {len(checks)} missing" if missing else f"all {len(checks)} are here"
    text = f"{table(rows, ['', 'what', 'name', 'for', 'where'])}\n\n{count}{note}"
    ok = fetched_all and not missing
    show_result({"ok": ok, **more, "assets": checks}, text, quiet)
    return 0 if ok else 1
