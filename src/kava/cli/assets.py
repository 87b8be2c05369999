"""kava assets: models and data sets for nodes without a network - bring them here, say what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import OVERRIDES, check_flags, parse_recipe_args, show_result
from kava.cli.list_flags import ListFlagCommand
from kava.data.shared_store import move_cache
from kava.errors import ConfigError, DataError, ModelError
from kava.text_table import table

if TYPE_CHECKING:
    from kava.cli.assets_needed import Found, Need
    from kava.config import DatasetConfig, Recipe

CONTEXT: dict[str, Any] = {"help_option_names": ["--help", "-h"], **OVERRIDES}
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Configs = Annotated[
    list[str] | None,
    typer.Option("--config", "--recipe", help="everything that runs of these recipes load; settings may follow"),
]
Models = Annotated[list[str] | None, typer.Option("--model", help="hub names or folders")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="hub names, known names (gsm8k), paths")]
DatasetConfigName = Annotated[str | None, typer.Option("--dataset_config", help="configuration of --dataset: main")]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache_dir", help="in place of the hub's cache (HF_HUB_CACHE, else HF_HOME/hub): models--ORG--NAME"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")]


@app.callback()
def assets() -> None:
    """Models and data sets for nodes without a network: bring them here, say what is missing."""


@app.command("fetch", cls=ListFlagCommand, context_settings=CONTEXT)
def fetch(
    ctx: typer.Context,
    model: Models = None,
    dataset: Datasets = None,
    dataset_config: DatasetConfigName = None,
    config: Configs = None,
    cache_dir: CacheDir = None,
    export_jsonl: Annotated[
        bool,
        typer.Option("--export_jsonl", help="also write data/<dataset>[_<dataset_config>]_train.jsonl: prompt, target"),
    ] = False,
    skip_model: Annotated[bool, typer.Option("--skip_model", help="no models")] = False,
    skip_dataset: Annotated[bool, typer.Option("--skip_dataset", help="no data sets")] = False,
    quiet: Quiet = False,
) -> int:
    """Download models and data sets into the hub's cache, where there is a network (HF_ENDPOINT: a mirror).

    Of a model one form of its weights, configuration and tokenizer; of a data set its files, or one configuration's.
    What is there is not downloaded again, what was cut off goes on, and everything is checked at the end.
    """
    recipes = _recipes(config, ctx)
    if not (recipes or model or dataset):
        raise ConfigError("nothing to fetch", "name it: --model, --dataset, or --config for all that a recipe needs")
    if (skip_model and model) or (skip_dataset and dataset):
        name = "model" if skip_model and model else "dataset"
        raise ConfigError(f"--{name} and --skip_{name} contradict each other", "leave one of them out")
    if export_jsonl and (skip_dataset or not (dataset or recipes)):
        raise ConfigError("--export_jsonl writes a data set, and none is fetched", "name it: --dataset openai/gsm8k")
    if cache_dir is not None:
        move_cache(str(cache_dir.expanduser().absolute()), os.environ)
    needs = _wanted(recipes, model, dataset, dataset_config, skip_model, skip_dataset)
    fetched, failed = _bring_all(needs, quiet)
    found = [need.found(failed.get(need.hub)) for need in needs]
    names = [*(dataset or []), *(recipe.dataset.name for recipe in recipes)]
    exported = _export(names, dataset_config, quiet) if export_jsonl else {}
    ok = not failed and all(one.problem is None for one in found)
    note = [] if cache_dir is None else ["", f"for runs: export HF_HUB_CACHE={cache_dir.expanduser().absolute()}"]
    facts = {"ok": ok, "fetched": fetched, "exported": exported, "assets": [one.facts for one in found]}
    show_result(facts, "\n".join([_text(found), *note]), quiet)
    return 0 if ok else 1


@app.command("verify", cls=ListFlagCommand, context_settings=CONTEXT)
def verify(
    ctx: typer.Context,
    config: Configs = None,
    model: Models = None,
    dataset: Datasets = None,
    dataset_config: DatasetConfigName = None,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
) -> int:
    """Say whether runs would find their models and data on this machine, without asking any network.

    Tokenizers are loaded, weights opened, rows read. Everything that is missing or torn is listed at once; exit code 1.
    """
    recipes = _recipes(config, ctx)
    if not (recipes or model or dataset):
        raise ConfigError("nothing to verify", "name it: --config RECIPE, --model or --dataset")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # of this process; runs ask unless told otherwise
    if cache_dir is not None:
        move_cache(str(cache_dir.expanduser().absolute()), os.environ)
    found = [need.found() for need in _wanted(recipes, model, dataset, dataset_config)]
    ok = all(one.problem is None for one in found)
    hint = [] if ok else ["", "bring what is missing where a network is: kava assets fetch (the same flags)"]
    show_result({"ok": ok, "assets": [one.facts for one in found]}, "\n".join([_text(found), *hint]), quiet)
    return 0 if ok else 1


def _recipes(configs: list[str] | None, ctx: typer.Context) -> list[Recipe]:
    if not configs and check_flags(ctx):
        raise ConfigError(f"unexpected {ctx.args[0]!r}", "settings need a recipe they apply to: --config")
    return [parse_recipe_args(name, ctx) for name in dict.fromkeys(configs or [])]


def _wanted(
    recipes: list[Recipe],
    models: list[str] | None,
    datasets: list[str] | None,
    dataset_config: str | None,
    skip_model: bool = False,
    skip_dataset: bool = False,
) -> list[Need]:
    from kava.backbone.silence_libraries import silence_libraries
    from kava.cli.assets_needed import data_need, merged, model_need, needs_of
    from kava.config import ModelConfig

    silence_libraries()
    needs = [need for recipe in recipes for need in needs_of(recipe)]
    needs += [model_need(ModelConfig(name=name), "given") for name in models or []]
    needs += [data_need(_dataset(name, dataset_config), "given") for name in datasets or []]
    left_out = [kind for kind, skip in (("model", skip_model), ("data set", skip_dataset)) if skip]
    return merged(need for need in needs if need.kind not in left_out)


def _dataset(name: str, config: str | None) -> DatasetConfig:
    from kava.config import DatasetConfig
    from kava.evaluation.eval_sets import cot_type_of

    return DatasetConfig(name=name, config=config, cot_type=cot_type_of(name, "natural_language"))


def _bring_all(needs: list[Need], quiet: bool) -> tuple[list[str], dict[Any, str]]:
    """Downloads what is on the hub and not here: the names of it, and what went wrong with the others.

    One that cannot be had stops no other one; an earlier copy of it stays.
    """
    from huggingface_hub import constants

    from kava.data.hub import cache, fetch, plan

    brought: list[str] = []
    failed: dict[Any, str] = {}
    if constants.HF_HUB_OFFLINE:
        print("note: HF_HUB_OFFLINE is set: the hub is not asked", file=sys.stderr)
        return brought, failed
    for repo, part in dict.fromkeys(need.hub for need in needs if need.hub is not None):
        try:
            planned = plan(repo, part)
            size = f"{len(planned.missing)} of {len(planned.files)} files, {planned.bytes / 1e9:.2f} GB"
            if not quiet:
                print(f"{repo.kind} {repo.name}: {size} to fetch into {cache()}", flush=True)
            fetch(planned, progress=not quiet)
        except (ModelError, DataError) as error:
            failed[repo, part] = f"{error.message}; {error.hint}"
            print(f"warning: {failed[repo, part]}", file=sys.stderr)
            continue
        brought += [repo.name] if planned.missing else []
    return brought, failed


def _export(names: list[str], config: str | None, quiet: bool) -> dict[str, int]:
    """Writes each training set as prompt and target, and says how many rows it has; file -> rows."""
    from kava.data.export import export_name, export_train, published

    written: dict[str, int] = {}
    for name in dict.fromkeys(names):
        path = Path("data") / export_name(name, config)
        written[str(path)] = count = export_train(name, config, path, progress=not quiet)
        if not quiet:
            print(f"wrote {count} rows to {path}")
        whole = published(name)
        if whole is not None and count != whole:
            print(f"warning: {name} was published with {whole} training rows, this one has {count}", file=sys.stderr)
    return written


def _text(found: list[Found]) -> str:
    rows = [["ok" if one.problem is None else "MISSING", one.kind, one.name, one.role, _where(one)] for one in found]
    lacking = sum(one.problem is not None for one in found)
    count = f"{lacking} of {len(found)} missing" if lacking else f"all {len(found)} are here"
    return f"{table(rows, ['', 'what', 'name', 'for', 'where'])}\n\n{count}"


def _where(one: Found) -> str:
    return str(one.place if one.problem is None else one.problem)
