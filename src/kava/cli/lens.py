"""kava lens: look into the latents of a trained student."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import Base, BatchSize, Device, ExactAdapters, MaxNewTokens, Quiet, Revision, TrustRemoteCode
from kava.errors import ConfigError, DataError
from kava.files import is_stream, write_json, write_text
from kava.infer.batch import JSON_LINES, read_questions
from kava.infer.checkpoint import checkpoint_folder
from kava.infer.checks import stored_recipe, student_files
from kava.outputs import Output, check_outputs, has_keys
from kava.progress import loading_libraries

PAGES = (".html", ".htm")


def lens(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="folder of a student, or owner/name on the hub")
    ],
    questions: Annotated[
        list[str] | None,
        typer.Option(help='"q1" "q2" ..., or one file: .jsonl as for kava evaluate, .txt with one a line'),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="in place of questions: a set as for kava evaluate, such as chains")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many items of the set or file, always the same")] = None,
    output: Annotated[Path | None, typer.Option(help="also write it all: a page (.html) or data (.json)")] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="so many nearest tokens of each latent")] = 5,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    base: Base = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    exact_adapters: ExactAdapters = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Look into a student's latents, question by question and together.

    Per latent and round the nearest tokens, said through the head and read by embedding; the answer's attention to each
    latent by layer; each latent's keys and values beside the chain of thought, where questions come with steps; what the
    answers lose when a latent is replaced by zero, the mean, another question's or noise. Answers are greedy.
    """
    if (questions is None) == (dataset is None):
        wrong = "there are no questions" if questions is None else "--questions and --dataset exclude each other"
        raise ConfigError(wrong, 'give --questions "..." "...", --questions FILE or --dataset NAME')
    source = _file(questions or [])
    if limit is not None and dataset is None and (source is None or source.suffix not in JSON_LINES):
        raise ConfigError("--limit has no effect on these questions", "it goes with --dataset and with a .jsonl file")
    checkpoint = checkpoint_folder(checkpoint, revision, not quiet)
    recipe = stored_recipe(checkpoint)
    if output is not None:
        _check_output(output, [*([source] if source else []), *student_files(checkpoint)], overwrite)

    with loading_libraries():
        from kava.evaluation.eval_sets import load_eval_set
        from kava.infer.student import Student
        from kava.lens.look import check_thinks, look
        from kava.lens.page import render_lens
        from kava.lens.text import report_text

    check_thinks(recipe)
    chosen: Any = [text.strip() for text in questions or ()]
    if dataset is not None or (source is not None and source.suffix in JSON_LINES):
        chosen = list(load_eval_set(recipe, dataset or str(source), limit).examples)
    elif source is not None:
        chosen = read_questions(source)
    student = Student.from_pretrained(checkpoint, device, base, trust_remote_code, exact_adapters)
    report = look(student, chosen, top=top, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=not quiet)
    data = report.to_dict()
    if output is not None and output.suffix in PAGES:
        write_text(output, render_lens(data))
    elif output is not None:
        write_json(output, data)
    show_result(data, report_text(report) + (f"\nwrote {output}" if output else ""), quiet)
    return 0


def _file(questions: list[str]) -> Path | None:
    """The file of questions, where the one word given is one."""
    if len(questions) != 1:
        return None
    path = Path(questions[0])
    named = path.suffix in (*JSON_LINES, ".txt") and not any(space in path.name for space in " \n?")
    if not named and not (len(questions[0]) < 1000 and path.is_file()):
        return None
    if not path.is_file():
        raise DataError(f"--questions {path}: there is no such file", "questions themselves need no file")
    return path


def _check_output(output: Path, inputs: list[Path], overwrite: bool) -> None:
    """Raises before anything is loaded where `output` cannot be written."""
    if output.suffix not in (*PAGES, ".json") and not is_stream(output):
        raise ConfigError(f"--output {output} has an unknown ending", "name a .html page or a .json file")
    is_ours = has_keys("kava_lens", "questions") if output.suffix == ".json" else _is_page
    check_outputs([Output("--output", output, is_ours)], inputs, overwrite)


def _is_page(path: Path) -> bool:
    """Whether `kava lens` wrote this file."""
    with path.open(encoding="utf-8") as file:
        return '<meta name="generator" content="kava lens">' in file.read(4000)
