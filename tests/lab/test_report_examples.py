"""The report's questions with answers: right and wrong ones, other modes beside, nothing where nothing was kept."""

import json
from pathlib import Path

import pytest

from kava.lab.analysis.load_study import load_study
from kava.lab.page.blocks import Paragraph, Table
from kava.lab.page.page import plots, render_page, sections
from kava.lab.page.sections.examples import EACH, examples
from report_runs import N, answer, run

pytest.importorskip("matplotlib")


def with_questions(folder: Path, name: str, text: str) -> None:
    path = folder / f"predictions_{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line |= {"question": f"{number} & <b>?", "gold": str(number), "text": f"{text} {number}\nand <script>"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    for seed, correct in ((1, 10), (2, 12)):
        folder = run(tmp_path / "latent", "E4_rkv", seed)
        answer(folder, "chains", correct)
        with_questions(folder, "chains", "latent")
        answer(folder, "chains.cot", N - 1, mode="cot")
        with_questions(folder, "chains.cot", "steps")
    other = run(tmp_path / "latent", "E1_baseline", 1)
    answer(other, "chains", 5)
    with_questions(other, "chains", "plain " * 60)
    return tmp_path / "latent"


def test_right_and_wrong_ones_of_every_member_and_mode(study_folder: Path) -> None:
    study = load_study([study_folder])
    paragraph, table = examples(study, "chains")
    assert isinstance(paragraph, Paragraph)
    assert isinstance(table, Table)
    labels = list(table.header[2:])
    rkv = next(label for label in labels if label.startswith("E4_rkv"))
    assert f"{rkv} (cot)" in labels
    assert labels.index(f"{rkv} (cot)") == labels.index(rkv) + 1  # right beside
    assert len(table.rows) == 2 * EACH
    leader, right = labels[0], {"E1_baseline": 5, "E4_rkv": 10}
    count = next(number for name, number in right.items() if leader.startswith(name))
    rows = list(table.rows)[: min(EACH, count)]
    assert [row[0] for row in rows] == [f"{number} & <b>?" for number in range(min(EACH, count))]
    column = 2 + labels.index(rkv)
    wrong = [row for row in table.rows if int(row[1]) >= 10]
    assert all("(wrong)" in row[column] for row in wrong)
    assert all(len(str(row[column])) < 300 for row in table.rows)


def test_they_come_first_and_are_escaped(study_folder: Path) -> None:
    study = load_study([study_folder])
    parts = sections(study)
    assert parts[0].name == "examples"
    assert parts[-2].name == "claims"  # not analysed: it says how, at the end
    page = render_page(study, parts, {plot.name: "" for plot in plots(parts)})
    assert "<script" not in page
    assert "0 &amp; &lt;b&gt;?" in page
    assert "(wrong)" in page


def test_predictions_without_questions_give_no_section(tmp_path: Path) -> None:
    folder = run(tmp_path / "latent", "E4_rkv", 1)
    answer(folder, "chains", 3)
    assert "examples" not in [part.name for part in sections(load_study([tmp_path / "latent"]))]
