"""The report on runs with several teachers: its numbers are those of the files, what is absent or bad is said."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

import report_mixtures as made
from kava.cli.main import main
from kava.errors import DataError
from kava.lab.analysis.load_study import load_study
from kava.lab.page.blocks import PageSection
from kava.lab.page.figures import render
from kava.lab.page.formats import number
from kava.lab.page.heat import LEVELS, SHARE, Scale, scale_of, thinned_columns
from kava.lab.page.page import plots, render_page, sections
from kava.lab.page.sections.routing import by_figure
from kava.lab.page.sections.teachers import teachers
from report_runs import Reader
from report_runs import run as plain_run

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.suite(tmp_path_factory.mktemp("mixtures") / "out")


@pytest.fixture(scope="module")
def read(root: Path) -> Reader:
    return words(root)


def words(*roots: Path) -> Reader:
    """The page's words and tables, with empty figures."""
    study = load_study(list(roots))
    page_sections = sections(study)
    drawn = {plot.name: "<svg></svg>" for plot in plots(page_sections)}
    return Reader(render_page(study, page_sections, drawn))


def copied(root: Path, tmp_path: Path, *members: str) -> Path:
    for member in members:
        shutil.copytree(root / member, tmp_path / "copy" / member)
    return tmp_path / "copy"


def section_of(root: Path) -> PageSection | None:
    return teachers(load_study([root]))


# --- numbers ------------------------------------------------------------------------------------------------------


def test_held_out_numbers_beside_the_accuracy(read: Reader):
    header = read.tables["Held-out numbers of members with teachers"][0]
    assert header == ["member", "seeds", "accuracy on chains, %", "CE", "KV", "KV, start", "KV, mean", "ratio",
                      "ratio, start", "entropy", "CE gap", "KV gap"]  # fmt: skip
    rows = {row[0]: row[1:] for row in read.table("Held-out numbers of members with teachers")}
    assert list(rows) == ["sft", "fixed", "learnable", "similarity", "single_a"]
    kv = [1.5 * math.exp(-2) + 0.1 * seed for seed in (1, 2)]
    assert rows["learnable"][3] == f"{mean(kv):.4g} ({stdev(kv):.2g})"
    assert rows["learnable"][4:6] == ["1.8 (0)", "1.2 (0)"]
    assert rows["sft"][2] == "1.025 (0)"
    assert rows["sft"][3:8] == ["\u2013"] * 5  # not 0: it has no teachers


def test_each_teacher(read: Reader):
    rows = {(row[0], row[1]): row[2:] for row in read.table("Each teacher")}
    kv = [1.5 * (1.5 * math.exp(-2) + 0.1 * seed) for seed in (1, 2)]
    assert rows["fixed", "b"][:4] == ["org/tiny-b", "cot", "6", "100.0"]
    assert rows["fixed", "b"][5] == f"{mean(kv):.4g} ({stdev(kv):.2g})"
    assert rows["learnable", "c"][:4] == ["the student's base", "default", "2", "87.5"]
    assert [key for key in rows if key[0] == "single_a"] == [("single_a", "a")]
    assert not any(key[0] == "sft" for key in rows)


def test_weights_over_training(read: Reader):
    rows = {(row[0], row[1], row[3]): row[4:] for row in read.table("Weights of the teachers over training")}
    assert {key[0] for key in rows} == {"learnable", "similarity"}  # the others' never move
    assert "The weights of fixed and single_a stay as they were set" in read.text
    first, *_, last = made.routing(2, "learnable", made.TEACHERS)
    assert rows["learnable", "2", "b"] == [
        f"{first['weights']['b']:.3g}", f"{last['weights']['b']:.3g}", f"{last['entropy']:.3g}", "0.6"
    ]  # fmt: skip


def test_weights_by_layer_are_means_over_seeds(read: Reader):
    rows = read.table("Weights by student layer over training, learnable")
    for layer, row in enumerate(rows):
        for i in range(3):
            for step, cell in zip((20, 400), row[1 + 2 * i : 3 + 2 * i], strict=True):
                expected = mean(made.routed(step, layer, seed, made.TEACHERS)[i] for seed in (1, 2))
                assert cell == f"{expected:.3g}"
    assert "Weights by student layer over training, similarity" not in read.tables  # all layers share them


def test_weights_by_question_and_by_task(read: Reader):
    samples = made.samples("learnable", made.TEACHERS)["samples"]
    rows = read.table("Weights of the teachers for every validation question")
    assert [row[2] for row in rows] == [sample["id"] for sample in samples]
    assert rows[0][4] == ", ".join(f"{n} {w:.3f}" for n, w in zip("abc", samples[0]["weights"], strict=True))
    assert {row[0] for row in rows} == {"learnable"}
    assert "The weights of fixed, similarity and single_a are the same for every question" in read.text
    of_sums = [sample["weights"] for sample in samples if sample["task"] == "sums"]
    means = [100 * mean(column) for column in zip(*of_sums, strict=True)]
    row = next(
        row for row in read.table("Mean weight of every teacher by kind of question") if row[1:3] == ["2", "sums"]
    )
    assert row[3:] == ["8", ", ".join(f"{n} {m:.1f} %" for n, m in zip("abc", means, strict=True))]


def test_losses_by_layer(read: Reader):
    rows = {tuple(row[:3]): row[3:] for row in read.table("Loss of every student layer over training")}
    seeds = [made.layer_loss(seed) for seed in (1, 2)]
    assert rows["learnable", "keys", "1"] == [number(mean(s[i]["k"][1] for s in seeds)) for i in (0, -1)]
    assert rows["single_a", "values", "3"] == [number(mean(s[i]["v"][3] for s in seeds)) for i in (4, -1)]  # came late
    assert len(rows) == 4 * 2 * made.STUDENT_LAYERS


def test_tokens_and_layers_are_shown_once_for_all_who_share_them(read: Reader):
    rows = read.table("The same text in the student's tokens and the teachers'")
    assert [row[0] for row in rows] == ["a"] * 17 + ["b"] * 17 + ["c"] * 17
    example = made.alignment(("b",))["teachers"]["b"]["example"]
    row = next(row for row in rows if row[:2] == ["b", "1"])
    partners = [(t, s) for t, s in zip(example["teacher"], example["iou"][1], strict=True) if s]
    assert row[3].split("  ") == [f"{t.strip()} ({s:.2g})" for t, s in partners]
    assert row[4] == f"{sum(example['iou'][1]):.3g}"
    layers = {
        (row[0], row[2]): row[1::2] for row in read.table("Teacher layers that each student layer is compared with")
    }
    assert layers["b", "1"] == ["fixed, learnable and similarity", "1 (0.33), 2 (0.67)"]
    assert layers["a", "2"] == ["fixed, learnable, similarity and single_a", "2"]
    assert "read by no student layer" not in read.text


def test_long_texts_are_drawn_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(made, "TEXT", " ".join(f"{i} + {i} = {2 * i}." for i in range(40)))
    section = section_of(made.run(tmp_path, "long", 1))
    assert section is not None
    tokens = next(plot for plot in plots([section]) if plot.name == "tokens")
    assert "Their beginnings are drawn, the table has all." in tokens.caption
    assert len(tokens.rows) == 3 * len(made.pieces(2))
    svg = render(tokens)
    assert tokens.size[1] < 12
    assert svg.count("<text") <= 3 * (1 + 36 + 50) + 20


def test_layers_that_nobody_reads_and_a_collapse_are_said(root: Path, tmp_path: Path):
    copy = copied(root, tmp_path, "learnable", "fixed")
    for member in ("learnable", "fixed"):
        path = copy / member / "seed_1" / "alignment.json"
        data = json.loads(path.read_text())
        data["teachers"]["b"]["layer_map"][1] = [[2, 1.0]]
        path.write_text(json.dumps(data))
        weights = {"a": 0.97, "b": 0.02, "c": 0.01}
        line = {
            "step": 420,
            "weights": weights,
            "by_layer": [[*weights.values()]] * 4,
            "entropy": 0.1,
            "temperature": 0.5,
        }
        if member == "fixed":
            line["by_layer"] = line["by_layer"][:1]
        with (copy / member / "seed_1" / "routing.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    read = words(copy)
    assert "Of b of fixed, layer 1 is read by no student layer." in read.text  # seed 2 is aligned otherwise
    assert "learnable, seed 1: 97.0 % of the weight is a's (alarm at 95.0 %)." in read.text
    assert "fixed, seed 1: 97.0" not in read.text  # its weights were set by hand


def test_student_layers_have_their_own_numbers(root: Path, tmp_path: Path):
    copy = copied(root, tmp_path, "learnable")
    for seed in (1, 2):
        path = copy / "learnable" / f"seed_{seed}" / "recipe.yaml"
        path.write_text(path.read_text().replace("enabled: true", "enabled: true\n  layers: 8-11"))
    rows = words(copy).table("Loss of every student layer over training")
    assert [row[2] for row in rows[:4]] == ["8", "9", "10", "11"]


# --- a run that goes on, or is not of this kind -------------------------------------------------------------------


def test_without_the_files_there_is_no_section(tmp_path: Path):
    plain_run(tmp_path / "plain", "steps", 1)
    assert section_of(tmp_path / "plain") is None
    folder = made.run(tmp_path / "some", "fixed", 1, "fixed")
    for name in ("routing.jsonl", "routing_samples.json", "layer_loss.jsonl", "alignment.json"):
        (folder / name).unlink()
    read = words(tmp_path / "some")
    assert "Held-out numbers of members with teachers" in read.tables
    for title in ("Weights of the teachers", "Losses by layer", "Tokens and layers"):
        assert title not in read.text


def test_each_file_alone_is_enough(root: Path, tmp_path: Path):
    expected = {
        "routing.jsonl": {"routing_1", "routing_layers_learnable"},
        "routing_samples.json": {"routing_samples", "routing_tasks"},
        "layer_loss.jsonl": {"layer_losses"},
        "alignment.json": {"tokens", "layer_map"},
    }
    for kept, names in expected.items():
        copy = copied(root, tmp_path / kept, "learnable")
        for name in {*expected, "log.jsonl"} - {kept}:
            for path in copy.rglob(name):
                path.unlink()
        section = section_of(copy)
        assert section is not None
        assert {plot.name for plot in plots([section])} == names


def test_a_run_that_is_being_written_and_one_that_was_continued(root: Path, tmp_path: Path):
    copy = copied(root, tmp_path, "learnable")
    path = copy / "learnable" / "seed_1" / "routing.jsonl"
    again = json.loads(path.read_text().splitlines()[-1]) | {"weights": {"a": 0.5, "b": 0.25, "c": 0.25}}
    path.write_text(path.read_text() + json.dumps(again) + "\n" + '{"step": 440, "wei')
    rows = {(row[1], row[3]): row for row in words(copy).table("Weights of the teachers over training, learnable")}
    assert rows["1", "a"][2] == "400"
    assert rows["1", "a"][5] == "0.5"


def test_late_layers_may_be_absent_from_early_lines(root: Path, tmp_path: Path):
    copy = copied(root, tmp_path, "learnable")
    for path in copy.rglob("layer_loss.jsonl"):
        logged = [json.loads(line) for line in path.read_text().splitlines()]
        for line in logged[:4]:
            line["k"], line["v"] = line["k"][:2], line["v"][:2]
        made.lines(path, logged)
    rows = {tuple(row[1:3]): row[3] for row in words(copy).table("Loss of every student layer over training")}
    seeds = [made.layer_loss(seed) for seed in (1, 2)]
    assert rows["keys", "2"] == number(mean(s[4]["k"][2] for s in seeds))


def no_share(folder: Path) -> None:
    text = (folder / "routing.jsonl").read_text()
    (folder / "routing.jsonl").write_text(text.replace('"a": 0.', '"a": 7.', 1))


def other_teachers(folder: Path) -> None:
    text = (folder / "routing.jsonl").read_text()
    (folder / "routing.jsonl").write_text(text[::-1].replace('"a"'[::-1], '"z"'[::-1], 1)[::-1])


def no_samples(folder: Path) -> None:
    (folder / "routing_samples.json").write_text('{"step": 1, "teachers": ["a"], "samples": []}')


def other_parts(folder: Path) -> None:
    (folder / "layer_loss.jsonl").write_text('{"step": 1, "q": [1.0]}\n')


def layers_outside(folder: Path) -> None:
    data = json.loads((folder / "alignment.json").read_text())
    data["teachers"]["a"]["layer_map"][0] = [[99, 1.0]]
    (folder / "alignment.json").write_text(json.dumps(data))


def matrix_too_small(folder: Path) -> None:
    data = json.loads((folder / "alignment.json").read_text())
    data["teachers"]["a"]["example"]["iou"].pop()
    (folder / "alignment.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_share, "routing.jsonl is no file of routing weights.*not 3 shares"),
        (other_teachers, "routing.jsonl is no file of routing weights .KeyError: 'a'"),
        (no_samples, "routing_samples.json: samples: "),
        (other_parts, "layer_loss.jsonl is no file of losses by layer .*none of k, v, z"),
        (layers_outside, "alignment.json is no file of alignments .*layer map of a"),
        (matrix_too_small, "alignment.json is no file of alignments .*iou is not 17 by 17"),
    ],
)
def test_refusals_name_the_file(root: Path, tmp_path: Path, spoil: Any, message: str):
    copy = copied(root, tmp_path, "learnable")
    spoil(copy / "learnable" / "seed_2")
    with pytest.raises(DataError, match=message) as caught:
        section_of(copy)
    assert "seed_2" in caught.value.message
    assert caught.value.hint


# --- drawn --------------------------------------------------------------------------------------------------------


def test_drawn_in_the_colours_of_the_page(root: Path):
    section = section_of(root / "learnable")
    assert section is not None
    drawn = {plot.name: render(plot) for plot in plots([section])}
    assert list(drawn) == ["distances_1", "routing_1", "routing_layers_learnable", "routing_samples", "routing_tasks",
                           "layer_losses", "tokens", "layer_map"]  # fmt: skip
    for svg in drawn.values():
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert drawn["layer_losses"].count("<path") <= 2 * (LEVELS + 1) + 40  # a shape per shade, however many cells
    assert "not measured" in drawn["layer_losses"]


def test_shades():
    assert [SHARE.level(x) for x in (0.0, 0.01, 0.5, 1.0)] == [0, 0, LEVELS // 2, LEVELS]
    wide = scale_of([0.001, None, 10.0])
    assert wide.log
    assert [wide.level(x) for x in (0.001, 0.1, 10.0)] == [1, 1 + round((LEVELS - 1) / 2), LEVELS]
    assert scale_of([1.0, 2.0]) == Scale(1.0, 2.0)
    assert not scale_of([0.0, 100.0]).log
    assert scale_of([3.0, 3.0]).level(3.0) == LEVELS
    assert scale_of([None]).level(0.0) == LEVELS


def test_columns_are_means_of_neighbours():
    steps = list(range(10, 1510, 10))
    columns, (row, empty) = thinned_columns(steps, [[float(s) for s in steps], [None] * len(steps)])
    assert columns == steps[2::3]
    assert row == [float(s) for s in steps[1::3]]
    assert set(empty) == {None}
    assert thinned_columns([1, 2], [[1.0, 2.0]]) == ([1, 2], [[1.0, 2.0]])


def test_members_side_by_side():
    assert [len(part) for n in range(8) for part in by_figure([str(i) for i in range(n)])] == [
        1, 2, 3, 2, 2, 3, 2, 3, 3, 3, 3, 1
    ]  # fmt: skip


# --- the same numbers as text -------------------------------------------------------------------------------------


def test_analysis_has_a_table_of_the_teachers(root: Path, tmp_path: Path, capsys: Any):
    copy = copied(root, tmp_path, "sft", "learnable")
    words = [
        "analyze",
        "--output_base",
        str(copy),
        "--experiments",
        "sft",
        "learnable",
        "--save_json",
        str(tmp_path / "a.json"),
    ]
    assert main(words) == 0
    text = (copy / "EXPERIMENT_REPORT.txt").read_text()
    table = text[text.index("TEACHERS: held-out numbers") :].splitlines()
    kv = mean(1.5 * math.exp(-2) + 0.1 * seed for seed in (1, 2))
    rows = {tuple(line.split()[:2]): line.split() for line in table if line}
    assert next(row for key, row in rows.items() if key[0] == "learnable" and key[1] not in "abc")[1:4] == [
        "53.8", "1.0250", f"{kv:.4f}"
    ]  # fmt: skip
    assert rows["learnable", "b"][2:] == [f"{1 / 3:.4f}", f"{1.5 * kv:.4f}"]
    assert next(row for key, row in rows.items() if key[0] == "sft")[3] == "-"
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["experiments"][1]["held_out"]["kv_c"] == pytest.approx(1.8 * kv)


def test_aggregate_has_them_over_seeds(root: Path, capsys: Any):
    seeds = [str(root / "learnable" / f"seed_{seed}") for seed in (1, 2)]
    assert main(["aggregate", "--seed_dirs", *seeds, "--quiet"]) == 0
    held_out = json.loads(capsys.readouterr().out)["tiny"]["held_out"]
    kv = [1.5 * math.exp(-2) + 0.1 * seed for seed in (1, 2)]
    assert held_out["kv"] == {"mean": pytest.approx(mean(kv)), "std": pytest.approx(stdev(kv)), "num_seeds": 2}
    assert main(["aggregate", "--seed_dirs", *seeds]) == 0
    assert ["kv_a", "2", f"{1.2 * mean(kv):.4g}"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert main(["aggregate", "--seed_dirs", str(root / "sft" / "seed_1"), "--quiet"]) == 0
    assert "held_out" not in json.loads(capsys.readouterr().out)["tiny"]


def test_seeds_that_begin_with_their_own_checkpoint_are_one_recipe(root: Path, tmp_path: Path, capsys: Any):
    copy = copied(root, tmp_path, "learnable")
    places = [copy / "learnable" / f"seed_{seed}" for seed in (1, 2)]
    for seed, place in enumerate(places, 1):
        with (place / "recipe.yaml").open("a") as file:
            file.write(f"training:\n  start_from: out/similarity/seed_{seed}/best_checkpoint\n")
    assert main(["aggregate", "--seed_dirs", *map(str, places), "--quiet"]) == 0
    assert main(["analyze", "--output_base", str(copy), "--experiments", "learnable", "--quiet"]) == 0
    path = places[1] / "recipe.yaml"
    path.write_text(path.read_text().replace("/similarity/", "/fixed/"))
    capsys.readouterr()
    assert main(["aggregate", "--seed_dirs", *map(str, places), "--quiet"]) == 2
    assert "training.start_from" in capsys.readouterr().err
