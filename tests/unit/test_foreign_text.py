"""Foreign texts are harmless: on a terminal, in a spreadsheet, in LaTeX, as the name of a folder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kava.cli.main import main
from kava.config import load_recipe
from kava.console import visible, visible_line
from kava.errors import ConfigError
from kava.infer.batch import blocks
from kava.infer.chat import Chat
from kava.lab.analysis.tables import AggregatedRecipe, as_csv, latex, no_formula
from kava.text_table import table

TITLE = "\x1b]0;owned\x07"
CLEAR = "\x1b[2J\x9b1A\r"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u4e2d\u6587 \u00e9 \U0001f600\tend\n", "plain \u4e2d\u6587 \u00e9 \U0001f600\tend\n"),
        (TITLE, "\\x1b]0;owned\\x07"),
        (CLEAR, "\\x1b[2J\\x9b1A\\r"),
        ("a\x00b\x7f\u202eexe\u2028", "a\\x00b\\x7f\\u202eexe\\u2028"),
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible_line("a\tb\nc" + text) == "a\\tb\\nc" + shown.replace("\t", "\\t").replace("\n", "\\n")


@given(st.text())
def test_nothing_on_a_terminal_is_a_command(text: str) -> None:
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in visible_line(text))
    assert visible(visible(text)) == visible(text)


def test_tables_and_results_and_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "\x1b" not in table([[TITLE, "a\nb"]], ["x", "y"])
    assert len(table([[TITLE, "a\nb"]], ["x", "y"]).split("\n")) == 3
    from kava.cli.common import show_result

    show_result([{"answer": CLEAR}], blocks([{"question": TITLE, "answer": CLEAR}]), quiet=False)
    show_result([{"answer": CLEAR}], "", quiet=True)
    assert main(["report", f"no{TITLE}where"]) == 2
    assert main(["train", "--config", f"no{TITLE}where"]) == 2
    printed = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(printed.out + printed.err)


def test_an_answer_in_a_conversation() -> None:
    class Answers:
        class recipe:
            class evaluation:
                temperature = 0.0
                top_p = 1.0

        def answer(self, *_: Any) -> list[Any]:
            return [type("Answer", (), {"text": TITLE, "forward_passes": 1, "truncated": False})()]

    lines: list[str] = []
    chat = Chat(Answers(), "latent", write=lines.append)  # type: ignore[arg-type]
    assert chat.line("3+4?")
    assert chat.line(f"/{TITLE}")
    assert "\x1b" not in "".join(lines)


FORMULA = "=cmd|' /C calc'!A0"


@pytest.mark.parametrize("text", [FORMULA, "+1+1", "-1-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert no_formula(text) == f"'{text.strip()}"
    entry = {"accuracy_mean": -0.5, "num_seeds": 1}
    body = {"num_seeds": 1, "datasets": {text: entry}, "model_name": text, "dataset": text}
    rows = list(csv.reader(io.StringIO(as_csv([AggregatedRecipe("c", body, Path())]))))
    assert [cell[:1] for cell in rows[1][:3]] == ["'"] * 3
    assert rows[1][3] == "-0.5"  # a number stays one


def test_other_cells_stay() -> None:
    assert [no_formula(text) for text in ("Llama-3.2", "-", "a=b", "")] == ["Llama-3.2", "-", "a=b", ""]


def test_latex_stays_on_its_line() -> None:
    assert latex("a\nb\r\\end{tabular}\x1b[2J") == r"a b \textbackslash{}end\{tabular\}\textbackslash{}x1b[2J"
    assert "\n" not in latex("a\n\n\\par\u2028b\x0b")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/x", "a/b", "a\nb", "a\x00b", "\x1b[2J", "x" * 151])
def test_a_recipes_name_stays_in_its_folder(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dl.yaml"
    path.write_text(f"extends: debug\nabout: {{name: {json.dumps(name)}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dl\.yaml: about\.name"):
        load_recipe(path)
    assert main(["train", "--config", str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err
    path.write_text("extends: debug\nabout: {name: my run 2 (\u4e2d)}\n", encoding="utf-8")
    assert load_recipe(path).about.name == "my run 2 (\u4e2d)"
