"""A million rows as a stream: memory stays flat, and after kill -9 the same rows come in the same order, each once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import environment
from stream_reader import BATCH, PROCESSES

pytestmark = pytest.mark.long
ROWS = 1_000_000
READER = Path(__file__).resolve().parent.parent / "stream_reader.py"


def start(rows: Path, done: int, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, READER, rows, str(done), out], env=environment())


def lines(out: Path) -> list[list[str]]:
    """The batches that were written whole: memory, then ids."""
    text = out.read_text(encoding="utf-8") if out.exists() else ""
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_for(out: Path, batches: int, reader: "subprocess.Popen[bytes]") -> list[list[str]]:
    while len(lines(out)) < batches:
        assert reader.poll() is None
        time.sleep(0.2)
    return lines(out)


def test_a_million_rows(tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "read"
    with rows.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            file.write(json.dumps({"question": f"{i}+1?", "steps": [f"{i}+1={i + 1}"], "answer": i + 1}) + "\n")
    batches = ROWS // (BATCH * PROCESSES)
    first = start(rows, 0, out)
    struck = wait_for(out, batches // 3, first)
    first.kill()
    first.wait()
    done = len(struck) - 5  # a checkpoint is older than what was read last
    second = start(rows, done, tmp_path / "rest")
    rest = wait_for(tmp_path / "rest", batches - done - 1, second)  # the fifty held-out rows are missing at the end
    second.kill()
    second.wait()
    again = lines(out)[done:]
    assert [ids for _, *ids in rest[: len(again)]] == [ids for _, *ids in again]
    ids = [name for _, *batch in [*struck[:done], *rest[: batches - done - 1]] for name in batch]
    assert len(ids) == len(set(ids)) == (batches - 1) * BATCH
    memory = [int(line[0]) for line in rest]
    early, late = memory[len(memory) // 10], max(memory[-20:])
    assert late <= 1.05 * early, f"{early} MB early, {late} MB late"
