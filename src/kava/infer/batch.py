"""Batch mode: questions from a file, answers as rows, text and a file. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kava.data.fields import QUESTION
from kava.data.rows import JsonRows, text
from kava.errors import DataError
from kava.files import write_text
from kava.outputs import rows_have

if TYPE_CHECKING:
    from kava.infer.student import Answer

RULE = "-" * 80
JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_questions(source: Path) -> list[str]:
    """The questions in JSON rows (question, prompt or problem), or in a text file with one a line."""
    if source.suffix in JSON_LINES:
        prompts = [text(row, QUESTION, where) for where, row in JsonRows(source)]
    else:
        try:
            lines = source.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{source} is not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{source} holds no question", "one question a line, or JSON lines in a file named .jsonl")
    return prompts


def answer_row(question: str, answer: "Answer", mode: str) -> dict[str, Any]:
    """One answer as a row of JSON."""
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


def problem_row(question: str, problem: str, mode: str) -> dict[str, Any]:
    """A question that has no answer, as a row with the keys of `answer_row` and `error`."""
    without = {"answer": None, "value": None, "mode": mode, "forward_passes": 0, "executed_calls": 0}
    return {"question": question, **without, "generated_tokens": 0, "truncated": False, "error": problem}


def write_answers(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines for a name in .jsonl, otherwise Q: and A: blocks."""
    if path.suffix in JSON_LINES:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_text(path, blocks(rows) + "\n")


def answers_of_ours(path: Path) -> bool:
    """Whether `write_answers` wrote this file."""
    if path.suffix in JSON_LINES:
        return rows_have("question", "answer", "forward_passes", "executed_calls")(path)
    parts = path.read_text(encoding="utf-8").split(f"\n{RULE}\n")
    return all(part.startswith("Q: ") and ("\nA: " in part or "\nerror: " in part) for part in parts)


def blocks(rows: Sequence[dict[str, Any]], passes: bool = False) -> str:
    """Q: and A: blocks with rules between them; with `passes` also the cost of each answer."""
    rule = f"\n{RULE}\n"
    return rule.join(f"Q: {row['question']}\n{_reply(row, passes)}" for row in rows)


def _reply(row: dict[str, Any], passes: bool) -> str:
    if "error" in row:
        return f"error: {row['error']}"
    return f"A: {row['answer']}" + (f"\n{cost(row['forward_passes'], row['truncated'])}" if passes else "")


def cost(forward_passes: int, truncated: bool) -> str:
    """Forward passes of an answer, in brackets."""
    return f"[{forward_passes} forward passes{', cut off' if truncated else ''}]"
