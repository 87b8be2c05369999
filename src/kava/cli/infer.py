"""kava infer: ask a trained student."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import Base, BatchSize, Checkpoint, Device, ExactAdapters, MaxNewTokens, Revision, TrustRemoteCode
from kava.config import KEYS
from kava.console import tell
from kava.errors import ConfigError, DataError
from kava.infer.batch import answer_row, answers_of_ours, blocks, problem_row, read_questions, write_answers
from kava.infer.checkpoint import checkpoint_folder
from kava.infer.checks import arithmetic, check_config, own_mode, stored_recipe, student_files, untrained
from kava.outputs import Output, check_outputs
from kava.progress import loading_libraries


def infer(
    checkpoint: Checkpoint,
    config: Annotated[str | None, typer.Option(help="the recipe you take it for: an error if it is another")] = None,
    mode: Annotated[
        Literal["interactive", "batch"] | None, typer.Option(help="default: batch if there are questions")
    ] = None,
    questions: Annotated[list[str] | None, typer.Option(help='questions for batch mode: "q1" "q2" ...')] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(help="questions for batch mode: .txt, one a line, or .jsonl with question|prompt|problem"),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option(help="also write the answers: Q: and A: blocks, or JSON lines for a name in .jsonl")
    ] = None,
    use_latent: Annotated[
        bool | None,
        typer.Option("--use_latent/--no_latent", help="think in latents, or write the steps with the same weights"),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    base: Base = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    exact_adapters: ExactAdapters = False,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="batch mode: one JSON document and nothing else")] = False,
) -> int:
    """Ask a trained student: one question at a time, or many.

    Prints each answer and its forward passes: 1 + T + generated tokens with the end token. Interactive mode knows
    /latent on|off, /temp x, /help and /quit.
    """
    batch = mode == "batch" or (mode is None and (questions is not None or input_file is not None))
    _check_inputs(batch, questions, input_file, output_file, quiet)
    checkpoint = checkpoint_folder(checkpoint, revision, not quiet)
    if output_file is not None:
        sources = [*([input_file] if input_file else []), *student_files(checkpoint)]
        check_outputs([Output("--output_file", output_file, answers_of_ours)], sources, overwrite)
    prompts = read_questions(input_file) if input_file is not None else [text.strip() for text in questions or ()]
    if "" in prompts:
        raise DataError(f"--questions: question {prompts.index('') + 1} is empty")
    recipe = stored_recipe(checkpoint)
    if config is not None:
        check_config(config, recipe)
    how = own_mode(recipe) if use_latent is None else "latent" if use_latent else "cot"

    with loading_libraries():
        from kava.infer.chat import Chat
        from kava.infer.student import Student

    note = untrained(recipe, how)
    if note:
        tell(f"note: {how} answers: {note}")
    student = Student.from_pretrained(checkpoint, device, base, trust_remote_code, exact_adapters)
    if not quiet and (note := arithmetic(recipe)):
        tell(f"note: {note}")
    if not batch:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")  # bytes that the terminal's encoding does not have
        Chat(student, how, max_new_tokens).run()
        return 0
    problems = student.too_long(prompts, how, max_new_tokens)
    fitting = [text for i, text in enumerate(prompts) if i not in problems]
    answers = iter(student.answer(fitting, how, batch_size, max_new_tokens, progress=not quiet))
    rows = [
        problem_row(text, problems[i], how) if i in problems else answer_row(text, next(answers), how)
        for i, text in enumerate(prompts)
    ]
    if output_file is not None:
        write_answers(output_file, rows)
    written = f"\nwrote {output_file}" if output_file else ""
    show_result(rows, blocks(rows, passes=True) + written, quiet)
    for i, problem in problems.items():
        others = f" ({len(problems)} of {len(prompts)} questions are too long)" if len(problems) > 1 else ""
        raise DataError(f"question {i + 1}: {problem}{others}", "ask a shorter question, or lower --max_new_tokens")
    return 0


def _check_inputs(
    batch: bool, questions: Sequence[str] | None, source: Path | None, target: Path | None, quiet: bool
) -> None:
    if not batch:
        flags = {"--questions": questions, "--input_file": source, "--output_file": target, "--quiet": quiet or None}
        idle = [flag for flag, value in flags.items() if value is not None]
        if idle:
            raise ConfigError(f"{idle[0]} has no effect in interactive mode", "use --mode batch")
    elif questions is None and source is None:
        raise ConfigError("batch mode has no questions", 'give --questions "..." "..." or --input_file F')
    elif questions is not None and source is not None:
        raise ConfigError("--questions and --input_file exclude each other", "give one of them")
    for word in questions or ():
        if word.partition("=")[0].removeprefix("--") in KEYS and "=" in word:
            hint = "leave it out; a question that reads so goes into a file: --input_file"
            raise ConfigError(f"{word} is a setting and not a question: kava infer takes none", hint)
