"""kava extract: a teacher's keys and values of a data set, in a folder that training reads instead of the teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kava.cli.common import OVERRIDES, no_settings, parse_recipe_args, show_result
from kava.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from kava.config import Recipe, TeacherSpec
    from kava.teachers.live import LiveTeacher
    from kava.teachers.manifest import Manifest

CONTEXT = OVERRIDES


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
    with_question: Annotated[
        bool, typer.Option("--with_question", help="also mean values of the question: mixture.fusion=similarity")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="which of mixture.teachers: it reads its own tokens, with its prompt")
    ] = None,
    own_tokenizer: Annotated[
        bool,
        typer.Option("--own_tokenizer", help="the recipe's one teacher reads its own tokens, for a mixture's store"),
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="with --own_tokenizer: default, cot, direct, or a text with {question}")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="write nothing, check every hash of a store")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="write nothing, say how much it would be")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Writes a teacher store: safetensors shards with a manifest, for teacher.store=FOLDER.

    A teacher of a mixture (--teacher, or --own_tokenizer) is stored at its own tokens, and its entry in
    mixture.teachers gets store: FOLDER.

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

    from kava.backbone.load import load_tokenizer, locate
    from kava.backbone.silence_libraries import silence_libraries
    from kava.infer.student import pick_device
    from kava.teachers import extract as work
    from kava.teachers.request import SPLITS, Request, described, planned, read_source, refuse_too_long
    from kava.teachers.teacher_set import tokenization_of

    silence_libraries()
    spec = _spec(recipe, teacher, own_tokenizer, prompt)
    asked = tuple(splits or SPLITS)
    request = Request(
        kv_method, target_len, dtype, with_importance, with_cue, examples_per_shard, asked, with_question, spec
    ).checked(recipe)
    tokenizer = load_tokenizer(locate(recipe.model.name), recipe.model)
    tokenization = None if spec is None else tokenization_of(spec, recipe)
    source = read_source(recipe, tokenizer, request.splits, progress=not quiet, tokenization=tokenization)
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
    reader = _reader(recipe, spec, tokenizer, device)
    refuse_too_long(source.encoded, reader.max_positions, spec.label if spec else "of the recipe")
    manifest = described(request, recipe, reader, tokenization.encoder.tokenizer if tokenization else tokenizer, source)
    done = work.extract(reader, device, source.encoded, manifest, output_dir, batch_size, task, progress=not quiet)
    result = {"output_dir": str(output_dir), **_facts(plan, stored, size), **vars(done)}
    left = f", {done.missing} are left to other tasks" if done.missing else "; the store is complete"
    text = f"{done.written} shards written, {done.kept} were there{left}: {output_dir}"
    show_result(result, text, quiet)
    return 0


def _spec(recipe: Recipe, name: str | None, own_tokenizer: bool, prompt: str | None) -> TeacherSpec | None:
    """The teacher that reads its own tokens; None: the recipe's one teacher reads the student's."""
    there = {spec.label: spec for spec in recipe.mixture.teachers}
    if name is not None or there:
        if own_tokenizer or prompt is not None:
            raise ConfigError(
                "--own_tokenizer and --prompt are for the teacher of a recipe without a mixture",
                "the entries of mixture.teachers say how each reads",
            )
        if name is None and len(there) == 1:
            name = next(iter(there))
        if name not in there:
            said = "the recipe has several teachers" if name is None else f"no teacher is called {name!r}"
            known = f"--teacher takes one of: {', '.join(there)}" if there else "the recipe has no mixture.teachers"
            raise ConfigError(said, known)
        return there[name]
    if prompt is not None and not own_tokenizer:
        raise ConfigError(
            "--prompt without --own_tokenizer", "a teacher with the student's tokens reads the student's text"
        )
    if not own_tokenizer:
        return None

    from pydantic import ValidationError

    from kava.backbone.load import spec_of
    from kava.config import TeacherSpec

    try:
        return TeacherSpec(**(spec_of(recipe).model_dump() | {"prompt": "default" if prompt is None else prompt}))
    except ValidationError as error:
        raise ConfigError(f"--prompt: {error.errors()[0]['msg']}", "such as 'Think first. {question}'") from error


def _reader(recipe: Recipe, spec: TeacherSpec | None, tokenizer: Any, device: Any) -> LiveTeacher:
    from kava.backbone.load import load_teacher
    from kava.teachers.live import LiveTeacher
    from kava.teachers.teacher_set import load_live

    return LiveTeacher(load_teacher(recipe, tokenizer, device)) if spec is None else load_live(spec, recipe, device)


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
    also = [name for name in ("importance", "cue", "question") if getattr(manifest, f"with_{name}")]
    return (
        f"{manifest.num_examples} examples x 2 x {shape} x {mean:.1f} columns x {SIZE[manifest.dtype]} bytes"
        f"{''.join(f' + {name}' for name in also)} = {_amount(size)} in {manifest.num_shards} shards ({manifest.method})"
    )


def _amount(size: int) -> str:
    unit = next((unit for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= least), "bytes")
    return f"{size / {'GB': 1e9, 'MB': 1e6, 'kB': 1e3, 'bytes': 1}[unit]:.3g} {unit}"
