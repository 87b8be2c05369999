"""kava infer: ask a trained student."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kava.cli.common import show_result
from kava.cli.student import Base, BatchSize, Checkpoint, Device, MaxNewTokens
from kava.errors import ConfigError, DataError
from kava.infer.checks import stored_recipe
from kava.infer.modes import own_mode, untrained

if TYPE_CHECKING:
    from kava.config import Recipe
    from kava.infer.student import Answer

RULE = "-" * 80
JSON_LINES = (".jsonl", ".ndjson", ".json")
# settings of the network and of the text it reads; the others are only about training
SHAPING = (
    "model.name", "model.revision", "dataset.cot_type", "latent.", "loss.use_projection",
    "lora.enabled", "lora.r", "lora.alpha", "lora.target_modules",
)  # fmt: skip


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
    quiet: Annotated[bool, typer.Option("--quiet", help="batch mode: one JSON document and nothing else")] = False,
) -> int:
    """Ask a trained student: one question at a time, or many.

    Prints each answer and its forward passes: 1 + T + generated tokens with the end token. Interactive mode knows
    /latent on|off, /temp x, /help and /quit.
    """
    batch = mode == "batch" or (mode is None and (questions is not None or input_file is not None))
    _check_inputs(batch, questions, input_file, output_file, quiet)
    prompts = _questions(questions, input_file) if batch else []
    recipe = stored_recipe(checkpoint)
    if config is not None:
        check_config(config, recipe)
    how = own_mode(recipe) if use_latent is None else "latent" if use_latent else "cot"

    from kava.infer.chat import Chat
    from kava.infer.student import Student

    note = untrained(recipe, how)
    if note:
        print(f"note: {how} answers: {note}", file=sys.stderr)
    student = Student.from_pretrained(checkpoint, device, base)
    if not batch:
        _survive_any_input()
        Chat(student, how, max_new_tokens).run()
        return 0
    answers = student.answer(prompts, how, batch_size, max_new_tokens, progress=not quiet)
    rows = [_row(question, answer, how) for question, answer in zip(prompts, answers, strict=True)]
    if output_file is not None:
        _write(output_file, rows)
    show_result(rows, _printed(rows, output_file), quiet)
    return 0


def check_config(config: str, stored: Recipe) -> None:
    """The recipe `config` must describe the same network and text as the checkpoint's own."""
    from kava.config import explain, load_recipe, show

    wanted, own = ({row.key: row.value for row in explain(recipe)} for recipe in (load_recipe(config), stored))
    keys = [key for key in own if key.startswith(SHAPING) and not (key.startswith("lora.") and not own["lora.enabled"])]
    if own["rkv.full_slots"]:  # then training counted the latents itself
        keys.remove("latent.num_tokens")
    differ = [key for key in ["lora.enabled", *keys] if wanted[key] != own[key]]
    if differ:
        key = differ[0]
        more = f" (and {len(set(differ)) - 1} more keys)" if len(set(differ)) > 1 else ""
        raise ConfigError(
            f"--config {config}: {key} is {show(wanted[key])}, the checkpoint was trained with {show(own[key])}{more}",
            "leave --config out (the checkpoint knows its recipe), or give the checkpoint that belongs to it",
        )


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
    if target is not None and (target.is_dir() or target == source):
        what = "a folder" if target.is_dir() else "the input file"
        raise ConfigError(f"--output_file {target} is {what}", "name another file")


def _questions(questions: Sequence[str] | None, source: Path | None) -> list[str]:
    if source is None:
        blank = [i for i, question in enumerate(questions or (), 1) if not question.strip()]
        if blank:
            raise DataError(f"--questions: question {blank[0]} is empty")
        return [question.strip() for question in questions or ()]
    if source.suffix in JSON_LINES:
        from kava.data.rows import JsonRows, text
        from kava.data.sources.own import QUESTION

        prompts = [text(row, QUESTION, where) for where, row in JsonRows(source)]
    else:
        prompts = [line.strip() for line in _read(source).split("\n") if line.strip()]
    if not prompts:
        raise DataError(f"{source} holds no question", "one question a line, or JSON lines in a file named .jsonl")
    return prompts


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error


def _row(question: str, answer: Answer, mode: str) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "value": answer.value,
        "mode": mode,
        "forward_passes": answer.forward_passes,
        "executed_calls": answer.executed,
        "generated_tokens": answer.num_tokens,
        "truncated": answer.truncated,
    }


def _block(row: dict[str, Any]) -> str:
    return f"Q: {row['question']}\nA: {row['answer']}"


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from kava.files import write_text

    if path.suffix in JSON_LINES:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_text(path, f"\n{RULE}\n".join(_block(row) for row in rows) + "\n")


def _printed(rows: Sequence[dict[str, Any]], written: Path | None) -> str:
    cut = {True: ", cut off", False: ""}
    blocks = [f"{_block(row)}\n[{row['forward_passes']} forward passes{cut[row['truncated']]}]" for row in rows]
    return f"\n{RULE}\n".join(blocks) + (f"\nwrote {written}" if written else "")


def _survive_any_input() -> None:
    """Replaces bytes on stdin that the terminal's encoding does not have, instead of raising."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
