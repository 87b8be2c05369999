"""kava extract: store a teacher's keys and values of a data set, for training that reads them instead of the teacher."""

import re
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import OVERRIDES, no_settings, parse_recipe_args, show_result
from kava.cli.student import Quiet, TrustRemoteCode
from kava.console import fitted
from kava.errors import ConfigError
from kava.outputs import check_folder
from kava.progress import loading_libraries
from kava.stop_signals import continues_by

CONTEXT = OVERRIDES


def extract(
    ctx: typer.Context,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="folder of the store")],
    config: Annotated[str | None, typer.Option(help="recipe: its teacher, data set and student tokenizer")] = None,
    kv_method: Annotated[
        str, typer.Option(help="raw (every column), or what chooses columns: rkv, rkv_original, crop, steps, uniform")
    ] = "raw",
    target_len: Annotated[
        int | None, typer.Option(min=1, help="columns kept of each chain of thought; default: explicit.target_len")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: task i of n parallel tasks, from 0; it writes the shards k with k % n == i")
    ] = "0/1",
    examples_per_shard: Annotated[int, typer.Option(min=1, help="examples in one file")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="examples per forward pass of the teacher")] = 16,
    dtype: Annotated[
        str | None, typer.Option(help="dtype to store: float32, bfloat16 or float16; default: that of the weights")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option(help="train, validation; default: both")] = None,
    with_importance: Annotated[
        bool, typer.Option(help="add the answer's attention: for rkv on a raw store, weighted losses")
    ] = False,
    with_cue: Annotated[bool, typer.Option(help="add hidden states at the cue: for loss.alpha1_codi above 0")] = False,
    with_question: Annotated[
        bool, typer.Option(help="add the question's mean values: for mixture.fusion=similarity")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="name of one of mixture.teachers; it reads its own tokens, with its prompt")
    ] = None,
    own_tokenizer: Annotated[
        bool, typer.Option(help="the recipe's teacher reads its own tokens, for use in a mixture")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="with --own_tokenizer: default, cot, direct, or a text with {question}")
    ] = None,
    verify: Annotated[bool, typer.Option(help="check every hash of an existing store")] = False,
    dry_run: Annotated[bool, typer.Option(help="only print how large the store would be")] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> int:
    """Write a teacher store: safetensors shards with a manifest, for teacher.store=FOLDER.

    A teacher of a mixture (--teacher, or --own_tokenizer) is stored at its own tokens; its entry in mixture.teachers then
    gets store: FOLDER.

    Run again, it writes the missing shards only. Shards are hashed when written; --verify checks them, and training checks
    each example when it first reads it. The last bits of keys and values depend on --batch_size and the machine.
    """
    if verify:
        return _verify(ctx, output_dir, config, dry_run, quiet)
    if config is None:
        raise ConfigError("kava extract needs --config", "name a recipe of the explicit line, such as adaptive")
    recipe = parse_recipe_args(config, ctx)
    part = _part(shard)
    if not dry_run:
        check_folder("--output_dir", output_dir)

    with loading_libraries():
        from kava.backbone.silence_libraries import silence_libraries
        from kava.infer.student import pick_device
        from kava.teachers.request import SPLITS, Request
        from kava.teachers.store_plan import StorePlan, teacher_to_store

    silence_libraries()
    spec = teacher_to_store(recipe, teacher, own_tokenizer, prompt)
    chosen = tuple(splits or SPLITS)
    request = Request(
        kv_method, target_len, dtype, with_importance, with_cue, examples_per_shard, chosen, with_question, spec
    )
    plan = StorePlan(recipe, request, progress=not quiet)
    if not quiet or dry_run:
        show_result(plan.facts(), plan.estimate(), quiet)
    if not quiet and (lacking := plan.request.lacks(recipe)):
        print(fitted(f"note: for a run with this very recipe the store also needs {' '.join(lacking)}"))
    if dry_run:
        return 0
    with continues_by("the same command again writes the missing shards only"):
        counts = plan.write(pick_device(recipe.system.device), output_dir, batch_size, part)
    left = f", {counts['missing']} are left to other tasks" if counts["missing"] else "; the store is complete"
    text = f"{counts['written']} shards written, {counts['kept']} were there{left}: {output_dir}"
    show_result({"output_dir": str(output_dir), **plan.facts(), **counts}, text, quiet)
    return 0


def _verify(ctx: typer.Context, folder: Path, config: str | None, dry_run: bool, quiet: bool) -> int:
    if config is not None or dry_run:
        raise ConfigError("--verify looks at a store as it is", "give it --output_dir alone")
    no_settings(ctx)

    with loading_libraries():
        from kava.teachers.manifest import read_manifest
        from kava.teachers.store import verify

    manifest = read_manifest(folder)
    problems = verify(folder, progress=not quiet)
    result = {"output_dir": str(folder), "shards": manifest.num_shards, "problems": problems}
    fine = f"{folder}: {manifest.num_examples} examples in {manifest.num_shards} shards, every hash is right"
    show_result(result, "\n".join(problems) or fine, quiet)
    return 1 if problems else 0


def _part(text: str) -> tuple[int, int]:
    """i/n as (i, n)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard {text} is not i/n with 0 <= i < n", "tasks count from 0: 0/3, 1/3, 2/3")
    return int(match[1]), int(match[2])
