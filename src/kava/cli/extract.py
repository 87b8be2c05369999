"""kava extract: a teacher's keys and values of a data set, in a folder that training reads instead of the teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import OVERRIDES, no_settings, parse_recipe_args, show_result
from kava.cli.many import app_of
from kava.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from kava.teachers.manifest import Manifest


def extract(
    ctx: typer.Context,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="folder of the store")],
    config: Annotated[
        str | None, typer.Option(help="recipe: teacher.*, dataset.*, and model.* for its tokenizer")
    ] = None,
    kv_method: Annotated[
        str,
        typer.Option(help="raw (every column), or what chooses per sample: rkv, rkv_original, crop, steps, uniform"),
    ] = "raw",
    target_len: Annotated[
        int | None, typer.Option(min=1, help="columns kept of each chain of thought; default: explicit.target_len")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n, counted from 0: of n array tasks this one writes the shards k with k % n == i")
    ] = "0/1",
    examples_per_shard: Annotated[int, typer.Option(min=1, help="examples in one file")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="examples per pass of the teacher")] = 16,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: the type of the teacher's weights")
    ] = None,
    splits: Annotated[list[str] | None, typer.Option(help="train, validation; default: both")] = None,
    with_importance: Annotated[
        bool,
        typer.Option("--with_importance", help="also what the answer looks at: rkv on a raw store, weighted losses"),
    ] = False,
    with_cue: Annotated[
        bool, typer.Option("--with_cue", help="also hidden states at the cue: loss.alpha1_codi above 0")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="write nothing, check every hash of a store")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="write nothing, say how much it would be")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Writes a teacher store: safetensors shards with a manifest, for teacher.store=FOLDER.

    Started again, it writes what is missing. Shards are hashed as they are written; --verify checks them, and training
    checks each example when it first reads it. Keys and values are computed batch by batch: another --batch_size or
    machine moves their last bits.
    """
    if verify:
        return _verify(ctx, output_dir, config, dry_run, quiet)
    if config is None:
        raise ConfigError("kava extract needs --config", "name a recipe of the explicit line, such as adaptive")
    recipe = parse_recipe_args(config, ctx)
    task = _task(shard)

    from kava.backbone.hush import hush
    from kava.backbone.load import load_teacher, load_tokenizer, locate
    from kava.infer.student import pick_device
    from kava.teachers import extract as work
    from kava.teachers.live import LiveTeacher
    from kava.teachers.request import SPLITS, Request, described, planned, read_source

    hush()
    asked = tuple(splits or SPLITS)
    request = Request(kv_method, target_len, dtype, with_importance, with_cue, examples_per_shard, asked).checked(
        recipe
    )
    tokenizer = load_tokenizer(locate(recipe.model.name), recipe.model)
    source = read_source(recipe, tokenizer, request.splits, progress=not quiet)
    plan = planned(request, recipe, len(source.encoded))
    stored = work.stored_columns(source.encoded, plan)
    size = int(work.shard_bytes(plan, stored).sum())
    if not quiet or dry_run:
        show_result(_facts(plan, stored, size), _estimate(plan, stored, size), quiet)
    if not quiet and (lacking := request.lacks(recipe)):
        print(f"note: for a run with this very recipe the store also needs {' '.join(lacking)}")
    if dry_run:
        return 0
    device = pick_device(recipe.system.device)
    model = load_teacher(recipe, tokenizer, device)
    teacher = LiveTeacher(model)
    manifest = described(request, recipe, model, tokenizer, source)
    done = work.extract(teacher, device, source.encoded, manifest, output_dir, batch_size, task, progress=not quiet)
    result = {"output_dir": str(output_dir), **_facts(plan, stored, size), **vars(done)}
    left = f", {done.missing} are left to other tasks" if done.missing else "; the store is complete"
    text = f"{done.written} shards written, {done.kept} were there{left}: {output_dir}"
    show_result(result, text, quiet)
    return 0


def _verify(ctx: typer.Context, folder: Path, config: str | None, dry_run: bool, quiet: bool) -> int:
    if config is not None or dry_run:
        raise ConfigError("--verify looks at a store as it is", "give it --output_dir alone")
    no_settings(ctx)

    from kava.teachers.manifest import read_manifest
    from kava.teachers.store import verify

    manifest = read_manifest(folder)
    problems = verify(folder, progress=not quiet)
    result = {"output_dir": str(folder), "shards": manifest.num_shards, "problems": problems}
    fine = f"{folder}: {manifest.num_examples} examples in {manifest.num_shards} shards, every hash is right"
    show_result(result, "\n".join(problems) or fine, quiet)
    return 1 if problems else 0


def _task(text: str) -> tuple[int, int]:
    """(i, n) of i/n."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--shard {text} is not i/n with 0 <= i < n", "tasks count from 0: 0/3, 1/3, 2/3")
    return int(found[1]), int(found[2])


def _facts(manifest: Manifest, stored: np.ndarray, size: int) -> dict[str, Any]:
    return {
        "examples": manifest.num_examples,
        "shards": manifest.num_shards,
        "columns": int(stored.sum()),
        "dtype": manifest.dtype,
        "method": manifest.method,
        "estimated_bytes": size,
    }


def _estimate(manifest: Manifest, stored: np.ndarray, size: int) -> str:
    from kava.teachers.shards import SIZE

    shape, mean = manifest.shape, stored.mean()
    also = [name for name in ("importance", "cue") if getattr(manifest, f"with_{name}")]
    return (
        f"{manifest.num_examples} examples x 2 x {shape} x {mean:.1f} columns x {SIZE[manifest.dtype]} bytes"
        f"{''.join(f' + {name}' for name in also)} = {_amount(size)} in {manifest.num_shards} shards ({manifest.method})"
    )


def _amount(size: int) -> str:
    unit = next((unit for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= least), "bytes")
    return f"{size / {'GB': 1e9, 'MB': 1e6, 'kB': 1e3, 'bytes': 1}[unit]:.3g} {unit}"


app = app_of("extract", extract, **OVERRIDES)
