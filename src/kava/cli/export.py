"""kava export: a student for programs that know nothing of kava."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import Base, Quiet, Revision, TrustRemoteCode
from kava.errors import ConfigError, DataError
from kava.infer.batch import read_questions
from kava.infer.checkpoint import checkpoint_folder
from kava.infer.checks import check_questions, stored_recipe, student_files
from kava.outputs import Output, check_outputs
from kava.progress import loading_libraries


def export(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a student, or owner/name on the hub")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="the new folder, for transformers alone")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="of the weights; default: as they are")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="ask so many questions of student and folder: the same tokens?")
    ] = 0,
    embeds: Annotated[
        Path | None, typer.Option(help="write the prompt embeddings of questions to this .safetensors file")
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(help="write a .gguf file for llama.cpp, and an .npz file of the same name")
    ] = None,
    questions: Annotated[
        list[str] | None, typer.Option(help='questions for --embeds or --check: "q1" "q2" ...')
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option(help="the same from a file: .txt, one a line, or .jsonl with question|prompt|problem")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="sizes only; writes nothing")] = False,
    base: Base = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Write a student as an ordinary model of its family, its questions as prompt embeddings, or a file for llama.cpp.

    DIR: adapters folded in, tokenizer, generation settings and a small latent head; transformers alone answers with it,
    through the generate.py inside. Every weight is read back and compared. docs/export.md says how each engine uses it.
    """
    _check_flags(folder, dtype, check, embeds, gguf, questions, input_file, dry_run)
    prompts = read_questions(input_file) if input_file is not None else [text.strip() for text in questions or ()]
    check_questions(prompts)
    checkpoint = checkpoint_folder(checkpoint, revision)
    recipe = stored_recipe(checkpoint)
    if embeds is not None:
        from kava.export.embeds import embeds_of_ours

        sources = [*([input_file] if input_file else []), *student_files(checkpoint)]
        check_outputs([Output("--embeds", embeds, embeds_of_ours)], sources, overwrite)
    if gguf is not None:
        _check_gguf(checkpoint, gguf, dtype, overwrite)
    with loading_libraries():
        from kava.export.folder import check_target, export_folder, planned_sizes

    if folder is not None:
        check_target(folder)
    if dry_run:
        sizes = planned_sizes(checkpoint, recipe, dtype, trust_remote_code)
        text = "\n".join(f"{name:<12} {size / 2**20:>10,.1f} MiB" for name, size in sizes.items())
        show_result({"folder": str(folder), "bytes": sizes}, f"{text}\nnothing was written", quiet)
        return 0
    document: dict[str, Any] = {}
    lines: list[str] = []
    passed = True
    if folder is not None:
        compared = _check_questions(recipe, prompts, check)
        made = export_folder(checkpoint, folder, dtype, compared, base, trust_remote_code)
        passed = made.passed
        document |= {"folder": str(folder), "dtype": made.dtype, "tensors": made.tensors, "check": made.card["check"]}
        lines.append(f"wrote {folder}: {made.tensors} tensors in {made.dtype}, each read back and equal")
        if made.compared:
            lines.append(f"check: {made.equal} of {made.compared} questions answered with the student's own tokens")
    if embeds is not None:
        lengths = _write_embeds(checkpoint, embeds, prompts, base, trust_remote_code)
        document |= {"embeds": str(embeds), "lengths": lengths}
        lines.append(f"wrote {embeds}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} embeddings")
    if gguf is not None:
        files = _write_gguf(checkpoint, gguf, dtype, base, trust_remote_code)
        document |= {"gguf": files}
        lines.append(f"wrote {' and '.join(files)}")
    show_result(document, "\n".join(lines), quiet)
    return 0 if passed else 1


def _check_flags(
    folder: Path | None, dtype: str | None, check: int, embeds: Path | None, gguf: Path | None, questions: list[str] | None,
    source: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    if folder is None and embeds is None and gguf is None:
        raise ConfigError("nothing to write", "name a folder: kava export CHECKPOINT DIR, or --embeds or --gguf FILE")
    if folder is None:
        for flag, value in {
            "--dtype": None if gguf else dtype,
            "--check": check or None,
            "--dry_run": dry_run or None,
        }.items():
            if value is not None:
                raise ConfigError(f"{flag} has no effect without DIR", "name the folder to export to, or leave it out")
    if questions is not None and source is not None:
        raise ConfigError("--questions and --input_file exclude each other", "give one of them")
    has_questions = questions is not None or source is not None
    if embeds is not None and not has_questions:
        raise ConfigError("--embeds has no questions", 'give --questions "..." "..." or --input_file F')
    if has_questions and embeds is None and not check:
        raise ConfigError("questions have no effect without --embeds or --check", "add one, or leave them out")


def _check_questions(recipe: Any, prompts: list[str], count: int) -> list[str]:
    """The first `count` of the questions, else of the student's validation set."""
    if not count:
        return []
    if not prompts:
        from kava.evaluation.selection import validation

        prompts = [example.question for example in validation(recipe)[:count]]
    if len(prompts) < count:
        raise DataError(f"--check {count}: only {len(prompts)} questions", f"take --check {len(prompts)}, or give more")
    return prompts[:count]


def _write_embeds(
    checkpoint: Path, path: Path, prompts: list[str], base: str | None, trust_remote_code: bool
) -> list[int]:
    from kava.export.embeds import prompt_embeds, write_embeds
    from kava.infer.student import Student

    student = Student.from_pretrained(checkpoint, "auto", base, trust_remote_code)
    rows = prompt_embeds(student, prompts)
    write_embeds(path, rows)
    return [len(row) for row in rows]


def _check_gguf(checkpoint: Path, path: Path, dtype: str | None, overwrite: bool) -> None:
    """Refuses, before weights are read, what cannot be written or has no place."""
    if path.suffix != ".gguf":
        raise ConfigError(f"--gguf {path} does not end in .gguf", "name it so: the file beside it ends in .npz")
    from kava.export.gguf_file import check_gguf, gguf_of_ours, head_of_ours

    check_gguf(dtype)
    outputs = [Output("--gguf", path, gguf_of_ours), Output("--gguf", path.with_suffix(".npz"), head_of_ours)]
    check_outputs(outputs, student_files(checkpoint), overwrite)


def _write_gguf(
    checkpoint: Path, path: Path, dtype: str | None, base: str | None, trust_remote_code: bool
) -> list[str]:
    from kava.export.gguf_file import write_gguf
    from kava.infer.student import Student

    student = Student.from_pretrained(checkpoint, "cpu", base, trust_remote_code)
    return [str(file) for file in write_gguf(student, path, dtype)]
