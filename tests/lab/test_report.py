"""kava report: a page whose numbers are those of the files, that needs nothing from outside, and says what is missing."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml

from kava.cli.main import main
from kava.errors import ConfigError, DataError, KavaError
from kava.lab.analysis.analyze import analyse
from kava.lab.analysis.load_study import load_study
from kava.lab.analysis.study import split_part
from kava.lab.page.charts import apart, percent_scale
from kava.lab.page.figures import SETTINGS as SETTINGS_OF_FIGURES
from kava.lab.page.figures import page_svg, render
from kava.lab.page.page import plots, render_page, sections
from kava.lab.page.sections.training import thinned
from report_runs import KEPT, RIGHT, SEEDS, STEPS, N, Reader, answer, run

pytest.importorskip("matplotlib")
T_OF_2 = 4.302652729911275  # 97.5 % of Student's t with two degrees of freedom
Z = 1.959963984540054


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members, three seeds; steps breaks once more (seed 4), E1 is stopped at seed 4, E4 has none."""
    root = tmp_path_factory.mktemp("report") / "latent"
    for member, counts in RIGHT.items():
        for seed, correct in zip(SEEDS, counts, strict=False):
            folder = run(root, member, seed)
            if member == "full_cot":
                answer(folder, "chains.cot", correct, mode="cot", cue="generated", avg_forward_passes=17.0 + seed)
                continue
            losses = {"ce_student": 0.1 * seed, "kv_rkv": 0.2 + seed / 10, "kv_full": 0.9}
            answer(folder, "chains", correct, losses=losses)
            answer(folder, "chains.limit16", correct, set_size=1319, data_sha256="ef" * 32)
            if member != "E1_baseline":
                answer(folder, "chains.ablate_zero", correct if member == "E4_rkv" else 5, ablate="zero")
                answer(folder, "chains.M6", correct - 2, num_tokens=6)
    answer(run(root, "E1_baseline", 4, finished=False), "chains", 1)
    (root / "E4_rkv" / "seed_1" / "kept.json").write_text(json.dumps(KEPT))
    modes = {name: "cot" if name == "full_cot" else "latent" for name in RIGHT}
    members = {name: {"title": f"the {name} one", "settings": [], "mode": mode} for name, mode in modes.items()}
    (root / "suite.json").write_text(
        json.dumps({"suite": "e1-e5", "config": "tiny", "seeds": [1, 2, 3, 4], "sets": ["chains"], "members": members,
                    "broken": {"steps/seed_4": "train ended with code 2: error: loss <nan>"}})
    )  # fmt: skip
    (root / "EXPERIMENT_REPORT.json").write_text(json.dumps(analyse(root)))
    return root


class Made:
    """What the verb printed and wrote."""

    def __init__(self, suite: Path, said: str, output: Path, figures: Path) -> None:
        self.suite, self.figures = suite, figures
        self.said = json.loads(said)
        self.html = output.read_text(encoding="utf-8")
        self.page = Reader(self.html)


@pytest.fixture(scope="module")
def made(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("out")
    output, figures, said = folder / "page.html", folder / "pics", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setitem(SETTINGS_OF_FIGURES, "pdf.fonttype", 3)  # three times as fast
        assert main(["report", str(suite), "--output", str(output), "--figures", str(figures), "--quiet"]) == 0
    return Made(suite, said.getvalue(), output, figures)


def percents(counts: tuple[int, ...]) -> str:
    """mean (sample sd), in percent."""
    values = [100 * count / N for count in counts]
    return f"{mean(values):.1f}" + (f" ({stdev(values):.1f})" if len(values) > 1 else "")


# --- the page as a page -------------------------------------------------------------------------------------------


def test_ids_are_unique_and_every_reference_is_inside_the_page(made: Made):
    ids = [attrs["id"] for _, attrs in made.page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["href"].removeprefix("#") for _, attrs in made.page.tags if "href" in attrs}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", made.html))
    wanted |= {name for _, attrs in made.page.tags for name in attrs.get("aria-labelledby", "").split()}
    assert wanted <= set(ids)


def test_text_of_files_and_flags_is_escaped(tmp_path: Path):
    name = "a<i>&amp;\"c'"
    run(tmp_path, "steps", 1).parent.rename(tmp_path / name)
    study = load_study([tmp_path])
    page_sections = sections(study)
    drawn = {plot.name: "<svg></svg>" for plot in plots(page_sections)}
    read = Reader(render_page(study, page_sections, drawn, f"Report on {name}"))
    assert read.text.count(f"Report on {name}") == 2
    assert read.table("Every member at one look")[0][0] == name
    assert "i" not in {tag for tag, _ in read.tags}


def test_needs_nothing_from_outside(made: Made):
    assert not {"script", "link", "iframe", "object", "embed", "img", "image"} & {tag for tag, _ in made.page.tags}
    assert "@import" not in made.html
    assert re.findall(r"url\((?!#)", made.html) == []
    for _, attrs in made.page.tags:
        assert all(attrs.get(name, "#").startswith("#") for name in ("src", "href", "xlink:href", "data"))
        assert not any("://" in value for value in attrs.values())


def test_figures_take_their_colours_from_the_page_and_have_words_for_everyone(made: Made):
    svgs = re.findall(r"<svg.*?</svg>", made.html, flags=re.DOTALL)
    assert len(svgs) == len(made.said["drawn"])
    for svg in svgs:
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert "font-family" not in svg
        assert "<desc" in svg
        assert 'role="img"' in svg
    assert sum(tag == "figure" for tag, _ in made.page.tags) == len(svgs)
    assert made.page.text.count("Numbers behind this figure") == len(svgs)


def test_every_figure_is_there_as_png_and_pdf(made: Made):
    for name in made.said["drawn"]:
        assert (made.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (made.figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(made.figures.iterdir())) == 2 * len(made.said["drawn"])


def test_the_same_files_give_the_same_page(made: Made):
    study = load_study([made.suite])
    page_sections = sections(study)
    drawn = dict(zip(made.said["drawn"], re.findall(r"<svg.*?</svg>", made.html, flags=re.DOTALL), strict=True))
    assert render_page(study, page_sections, drawn) == made.html
    for plot in plots(page_sections)[:2]:
        assert render(plot) == drawn[plot.name]


def test_loads_neither_torch_nor_transformers():
    modules = "sys, kava.cli.report, kava.lab.page.page, kava.lab.analysis.load_study, kava.progress"
    code = f"import {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- its numbers --------------------------------------------------------------------------------------------------


def test_everyone_at_one_look(made: Made):
    rows = {row[0]: row for row in made.page.table("Every member at one look")}
    assert list(rows) == [
        "E1_baseline",
        "full_cot",
        "E4_rkv",
        "steps",
    ]  # without KV term first, the suite's order within
    for name, counts in RIGHT.items():
        _, title, seeds, accuracy, _, _ = rows[name]
        assert (title, seeds, accuracy) == (f"the {name} one", f"{len(counts)} of 4", percents(counts))
    assert [rows[name][4] for name in rows] == ["5.0", "18.0", "5.0", "5.0"]
    assert rows["E1_baseline"][5] == "3 finished, 1 not finished (seed 4)"
    assert rows["E4_rkv"][5] == "3 finished, 1 missing (seed 4)"
    assert rows["steps"][5] == "3 finished, broken (seed 4) train ended with code 2: error: loss <nan>"
    assert rows["full_cot"][5] == "1 finished, 3 missing (seeds 2, 3, 4)"


def test_intervals_and_every_seed(made: Made):
    rows = {row[0]: row for row in made.page.table("Accuracy on chains")}
    for name in ("E1_baseline", "E4_rkv", "steps"):
        values = [100 * count / N for count in RIGHT[name]]
        half = T_OF_2 * stdev(values) / math.sqrt(3)
        low, high = max(0, mean(values) - half), min(100, mean(values) + half)
        assert rows[name][3:5] == [f"{low:.1f} to {high:.1f}", "t"]
        assert rows[name][5] == ", ".join(f"{v:.1f} ({s})" for v, s in zip(values, SEEDS, strict=True))
        assert rows[name][6] == ", ".join(map(str, RIGHT[name]))
    centre, half = (1 + Z * Z / 2 / N) / (1 + Z * Z / N), Z * math.sqrt(Z * Z / 4 / N / N) / (1 + Z * Z / N)
    assert rows["full_cot"][3:5] == [f"{100 * (centre - half):.1f} to 100.0", "Wilson"]


def test_counts_by_steps_and_passes(made: Made):
    rows = made.page.table("Accuracy on chains by number of steps")
    seed_2 = next(row for row in rows if row[:2] == ["E4_rkv", "2"])
    expected = [sum(i < RIGHT["E4_rkv"][1] for i in range(N) if STEPS[i] == n) for n in (1, 2, 3)]
    assert seed_2[2:] == [f"{count} of {STEPS.count(n)}" for count, n in zip(expected, (1, 2, 3), strict=True)]
    costs = {row[0]: row[2:] for row in made.page.table("Accuracy on chains against forward passes per question")}
    assert costs["full_cot"] == ["100.0", "18", "4", "2", "1.5 s", "cpu, 8"]


def test_first_and_last_values_of_the_curves(made: Made):
    header = made.page.tables["Loss terms over training"][0]
    assert header == ["member", "seed", "updates", "ce_student, first", "ce_student, last", "kv, first", "kv, last"]
    rows = {(row[0], row[1]): row[2:] for row in made.page.table("Loss terms over training")}
    assert rows["E4_rkv", "3"] == ["40", "0.13", "0.055", "0.2", "0.05"]
    assert rows["E1_baseline", "1"][3:] == ["\u2013", "\u2013"]  # no KV term: nothing, and not 0
    health = {(row[0], row[1]): row[2:] for row in made.page.table("Latents over training")}
    assert health["steps", "2"] == ["40", "7", "7", "-0.25", "-0.25", "0.75", "0.75"]
    assert "cut short are in no mean" in made.page.text


def test_what_the_kv_loss_is_made_of(made: Made):
    """Means over the seeds that ended; members without a KV term are not there."""
    rows = made.page.table("Share of every layer's keys and values in the KV loss over training")
    assert {row[0] for row in rows} == {"E4_rkv", "steps"}
    of_rkv = {(row[1], row[2]): row[3:] for row in rows if row[0] == "E4_rkv"}
    assert of_rkv["keys", "all"] == ["0.8", "0.8", "0.8"]
    assert of_rkv["keys", "0"] == ["0.49", "0.46", "0.475"]
    assert of_rkv["values", "1"] == ["0.08", "0.08", "0.08"]
    assert len(of_rkv) == 6


def test_kept_tokens(made: Made):
    rows = made.page.table("Kept tokens, example one")
    assert [row[:3] + row[4:] for row in rows[:4]] == [
        ["rkv", "0", "0", "0 5"],
        ["rkv", "0", "1", "1 2"],
        ["rkv", "1", "0", "5 6"],
        ["rkv", "1", "1", "4 5"],
    ]
    assert rows[0][3] == "$ 5"
    assert "2 & 3 <more>?" in made.page.text
    by_compressor = {row[0]: row[1:] for row in made.page.table("Kept tokens by compressor")}
    assert by_compressor["rkv"] == ["37.5", "85.7", "0.0"]  # results: 1/2, 0, 1/2, 1/2; tokens 0 1 2 4 5 6
    assert by_compressor["all tokens"][0] == f"{100 / 7:.1f}"


def test_says_whether_the_latents_are_used(made: Made):
    verdicts = {row[0]: row[1:] for row in made.page.table("Do the answers on chains depend on the latents?")}
    assert verdicts["E4_rkv"] == ["the latents are not used", "0 of 3 seeds"]
    assert verdicts["steps"] == ["the answers depend on the latents", "3 of 3 seeds"]
    rows = made.page.table("Accuracy on chains with the latents replaced")
    row = next(row for row in rows if row[:3] == ["steps", "1", "zero"])
    assert row[3:] == ["90.0", "12.5", "-77.5", "31", "0", "< 0.0001", "< 0.0001"]  # 2 / 2**31
    other = made.page.table("Accuracy on chains with another M, T or cue at test time")
    assert ["E4_rkv", "1", "M = 6", "45.0", "50.0"] in other


def test_held_out_losses(made: Made):
    rows = {row[0]: row[1:] for row in made.page.table("Held-out losses on chains")}
    assert made.page.tables["Held-out losses on chains"][0] == ["member", "seeds", "ce_student", "kv_rkv", "kv_full"]
    assert rows["steps"] == ["3", "0.200 (0.100)", "0.400 (0.100)", "0.900 (0.000)"]
    assert "full_cot" not in rows


def test_shows_the_words_of_the_analysis(made: Made):
    document = json.loads((made.suite / "EXPERIMENT_REPORT.json").read_text())
    words = {row[0]: row[1] for row in [*made.page.table("Claims of the guide"), *made.page.table("Claims of ours")]}
    assert words == {claim["sentence"]: claim["word"] for claim in document["claims"]}
    assert len(made.page.table("Comparisons behind the claims")) == sum(
        len(c["comparisons"]) for c in document["claims"]
    )


def test_settings_that_differ_and_commands(made: Made):
    header, *_ = made.page.tables["Settings that differ"]
    assert header == ["member", "loss.alpha2_kv", "loss.student_ce", "rkv.method"]
    rows = {row[0]: row[1:] for row in made.page.table("Settings that differ")}
    assert rows == {
        "E1_baseline": ["0", "1", "steps"],
        "full_cot": ["0", "0", "steps"],
        "E4_rkv": ["5", "1", "rkv"],
        "steps": ["5", "1", "steps"],
    }
    assert ["latent.num_tokens", "3"] in made.page.table("Shared settings")
    assert "kava suite e1-e5 --config tiny --seeds 1 2 3 4 --members E1_baseline" in made.page.text
    assert "kava train --seed 1" in made.page.text
    times = {row[0]: row[7] for row in made.page.table("Machines and times")}
    assert times["steps"] == "3 min 20 s"  # seeds 1, 2 and 3
    assert "ab" * 32 in made.page.text


# --- what is missing, and what is refused -------------------------------------------------------------------------


def document(roots: list[Path], *sets: str) -> Reader:
    """The page's words and tables, with empty figures."""
    study = load_study(roots, sets)
    page_sections = sections(study)
    drawn = {plot.name: "<svg></svg>" for plot in plots(page_sections)}
    return Reader(render_page(study, page_sections, drawn))


def test_missing_data_is_said_with_the_command_that_makes_it(tmp_path: Path):
    folder = tmp_path / "alone"
    folder.mkdir()
    fields = {"dataset": "own", "accuracy": 0.5, "correct": 2, "total": 4, "unit": "fraction"}
    (folder / "results_own.json").write_text(json.dumps(fields))
    read = document([folder])
    assert [row[:2] for row in read.table("Accuracy on own")] == [["alone", "1"]]
    for words in (
        "count no problems by number of steps",
        "no forward passes",
        "log with loss terms",
        "No log has validations",
        "No log holds the state of latents",
        "No run has a kept.json",
        "kava selection --checkpoint RUN/best_checkpoint",
        "latents replaced",
        "--ablate zero|mean|swap|noise",
        "No results hold losses",
        "kava analyze --output_base",
        "No run has its recipe.yaml",
        "No run has a meta.json",
    ):
        assert words in read.text


def test_a_run_without_results(tmp_path: Path):
    run(tmp_path, "steps", 1)
    read = document([tmp_path])
    assert "No run has results yet" in read.text
    assert read.table("Every member at one look") == [["steps", "0 of 1", "finished, 1 not evaluated (seed 1)"]]


def test_parts_of_a_set_are_left_out_unless_asked_for(suite: Path):
    assert load_study([suite]).sets == ("chains",)
    assert load_study([suite]).left_out == ("chains.limit16",)
    part = document([suite], "chains.limit16")
    assert "40 items of 1,319" in part.text
    assert "Accuracy on chains" not in part.tables


def test_an_old_analysis_is_not_shown(suite: Path, tmp_path: Path):
    copy = shutil.copytree(suite, tmp_path / "latent")
    answer(copy / "E4_rkv" / "seed_1", "chains", 19)
    read = document([copy])
    assert "Claims of the guide" not in read.tables
    assert "The analysis is of other results (E4_rkv, seed 1: 0.5 there, 0.475 now)" in read.text


def other_size(root: Path) -> None:
    (root / "E4_rkv/seed_1/results_chains.yaml").write_text("dataset: chains\naccuracy: 0.5\ncorrect: 1\ntotal: 2\n")


def other_items(root: Path) -> None:
    answer(root / "E4_rkv" / "seed_1", "chains", 20, data_sha256="12" * 32)


def torn(root: Path) -> None:
    (root / "E4_rkv/seed_1/results_chains.yaml").write_text("accuracy: [0.5")


def kept_outside(root: Path) -> None:
    data = json.loads(json.dumps(KEPT))
    data["examples"][0]["kept"]["rkv"][0][0] = [7]
    (root / "E4_rkv/seed_1/kept.json").write_text(json.dumps(data))


def kept_torn(root: Path) -> None:
    (root / "E4_rkv/seed_1/kept.json").write_text('{"examples": [{"id": 1}]}')


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (other_size, DataError, "seed_1.results_chains.yaml has 2 items, .*seed_2.results_chains.yaml has 40"),
        (other_items, DataError, "different items"),
        (torn, DataError, "seed_1.results_chains.yaml"),
        (kept_outside, DataError, "kept.json: example one"),
        (kept_torn, DataError, r"kept.json: examples\[0\].question is missing"),
    ],
)
def test_refusals(suite: Path, tmp_path: Path, spoil: Any, error: type[KavaError], words: str):
    copy = shutil.copytree(suite, tmp_path / "latent")
    spoil(copy)
    with pytest.raises(error, match=words) as caught:
        sections(load_study([copy]))
    assert caught.value.hint


def test_one_run_each(tmp_path: Path):
    run(tmp_path / "a", "steps", 1)
    other = run(tmp_path / "b" / "deep", "steps", 1)
    assert [member.label for member in load_study([tmp_path / "a", tmp_path / "b"]).members] == [
        "a/steps",
        "deep/steps",
    ]
    shutil.move(other, tmp_path / "a" / "steps_seed_1")
    with pytest.raises(ConfigError, match="two runs of"):
        load_study([tmp_path / "a"])


def test_a_folder_that_is_named_twice_is_one(suite: Path):
    once = load_study([suite])
    assert [member.runs for member in load_study([suite, suite]).members] == [member.runs for member in once.members]
    assert len(load_study([suite, suite / "E4_rkv"]).runs) == len(once.runs)


def test_runs_of_one_name_with_other_settings_are_members_of_their_own(tmp_path: Path):
    """Their mean would be a mean of nothing; kava aggregate refuses them."""
    for seed in (1, 2):
        run(tmp_path / "mix", "steps", seed)
    recipe = tmp_path / "mix" / "steps" / "seed_2" / "recipe.yaml"
    data = yaml.safe_load(recipe.read_text())
    data["loss"]["alpha2_kv"] = 0.5
    recipe.write_text(yaml.safe_dump(data))
    members = load_study([tmp_path]).members
    assert {member.label: [run.seed for run in member.runs] for member in members} == {
        "steps (alpha2_kv=5)": [1], "steps (alpha2_kv=0.5)": [2],
    }  # fmt: skip


def test_results_on_other_items_are_sets_of_their_own(tmp_path: Path):
    answer(run(tmp_path / "a", "steps", 1), "chains", 20)
    small = run(tmp_path / "b", "E4_rkv", 1)
    (small / "results_chains.yaml").write_text("dataset: chains\naccuracy: 0.5\ncorrect: 1\ntotal: 2\n")
    answer(run(tmp_path / "c", "E1_baseline", 1), "chains", 20, data_sha256="12" * 32)
    study = load_study([tmp_path])
    assert sorted(study.sets) == ["chains (2 items)", "chains (40 items, 12121212)", "chains (40 items, abababab)"]
    scores = {
        (member.label, label): study.score(member, label).mean for member in study.members for label in study.sets
    }
    assert {pair[0]: mean for pair, mean in scores.items() if mean is not None} == {
        "steps": 0.5, "E4_rkv": 0.5, "E1_baseline": 0.5,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no results on 'chains'"):
        load_study([tmp_path], ["chains"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "holds no run"),
        (["{empty}/none"], "no such folder"),
        (["{suite}", "--dataset", "gsm8k"], "no results on 'gsm8k'"),
        (["{suite}", "--output", "{empty}"], "is no page"),
        (["{suite}", "--output", "{empty}/file/page.html"], "cannot be written"),
        (["{suite}", "--output", "{empty}/page.html", "--figures", "{empty}/file"], "cannot be written"),
        ([], "missing argument"),
    ],
)
def test_one_line_and_exit_code_2(suite: Path, tmp_path: Path, capsys: Any, words: list[str], message: str):
    (tmp_path / "e").mkdir()
    if "file" in "".join(words):
        (tmp_path / "e" / "file").write_text("")
    filled = [word.format(empty=tmp_path / "e", suite=suite) for word in words]
    filled += [] if "--output" in words else ["--output", str(tmp_path / "page.html")]
    assert main(["report", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "page.html").exists()


def test_without_matplotlib(suite: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    assert main(["report", str(suite), "--output", str(tmp_path / "page.html")]) == 2
    assert "needs matplotlib" in capsys.readouterr().err


# --- parts --------------------------------------------------------------------------------------------------------


def test_labels_keep_apart_near_their_places_and_inside():
    wanted = [5.0, 5.1, 5.2, 9.0, 0.0]
    places = apart(wanted, 1.0, 0.0, 9.5)
    ordered = sorted(places)
    assert all(b - a > 0.999 for a, b in pairwise(ordered))
    assert sorted(range(5), key=lambda i: wanted[i]) == sorted(range(5), key=lambda i: places[i])
    assert places[3:] == [9.0, 0.0]
    assert abs(mean(places[:3]) - 5.1) < 1e-9
    assert min(apart([0.0, 0.0, 0.0], 1.0, 0.0, 9.0)) >= 0
    assert max(apart([9.0, 9.0, 9.0], 1.0, 0.0, 9.0)) <= 9


def test_an_axis_of_shares_stays_near_what_is_possible():
    assert percent_scale(94.5, 105.5) == (91.5, 101.5)
    assert percent_scale(-4.0, 60.0) == (-1.5, 60.0)
    assert percent_scale(40.0, 42.0) == (36.0, 46.0)
    assert percent_scale(20.0, 90.0) == (20.0, 90.0)


def test_long_lines_keep_their_mean_and_end():
    points = [(float(i), float(i % 7)) for i in range(1001)]
    short = thinned(points)
    assert len(short) <= 200
    assert short[-1][0] == 1000.0
    assert thinned(points[:200]) == points[:200]
    assert short[0] == (5.0, mean(y for _, y in points[:6]))


def test_parts_of_a_name():
    assert split_part(".limit16.M12.T1.cue_generated") == (".limit16", {"M": "12", "T": "1", "cue": "generated"})
    assert split_part(".steps3") == (".steps3", {})


def test_fonts_of_older_matplotlib():
    svg = '<svg viewBox="0 0 1 1"><g id="tip a&amp;b"><text style="font: italic 700 7.2px \'DejaVu Sans\'">x</text></g></svg>'
    page = page_svg(svg, "n", "t", "a")
    assert '<g><title>a&amp;b</title><text style="font-style: italic; font-weight: 700; font-size: 7.2px">' in page
