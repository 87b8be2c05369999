"""Reading results back, means over seeds, LaTeX and CSV: numbers checked by hand, nothing imputed, nothing mixed."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kava.cli.main import main
from kava.config import load_recipe, save_recipe
from kava.errors import DataError, RunError
from kava.lab.analysis.paper import TABLE
from kava.lab.analysis.runs import find_runs, read_result, same_items
from kava.text_table import table

TOTAL = 1319


def results(folder: Path, name: str, correct: int, **fields: Any) -> Path:
    found = {
        "dataset": name, "mode": "latent", "cue": "given", "accuracy": correct / TOTAL, "correct": correct,
        "total": TOTAL, "unit": "fraction", "avg_forward_passes": 6.5, "std_forward_passes": 0.5,
        "data_sha256": f"sha of {name}", **fields,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{name}.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three seeds of llama1b_aug; the last one has no SVAMP."""
    for i, seed in enumerate((42, 123, 456)):
        folder = tmp_path / "outputs" / "llama1b_aug_multi_seed" / f"seed_{seed}"
        results(folder, "gsm8k", 740 + 10 * i, avg_forward_passes=6.0 + i)
        if seed != 456:
            results(folder, "svamp", 600)
        save_recipe(load_recipe("llama1b_aug", [f"system.seed={seed}"]), folder / "recipe.yaml")
        (folder / "meta.json").write_text(json.dumps({"finished": True, "steps": 9}))
    return tmp_path


def aggregate(tree: Path, *words: str, seeds: tuple[int, ...] = (42, 123, 456)) -> int:
    root = tree / "outputs" / "llama1b_aug_multi_seed"
    files = [
        "--output_json",
        str(root / "aggregated_results.json"),
        "--output_yaml",
        str(root / "aggregated_results.yaml"),
    ]
    return main(["aggregate", "--seed_dirs", *[str(root / f"seed_{seed}") for seed in seeds], *files, *words])


def test_text_tables_align_words_left_and_numbers_right() -> None:
    rows = [("a", "1.0", "x"), ("bcd", "12.0", "")]
    assert table(rows, ("name", "n", "note")) == "name  n     note\n----  -     ----\na     1.0   x\nbcd   12.0"
    numbers = [row[:2] for row in rows]
    assert table(numbers, ("name", "n"), left=1) == "name     n\n----------\na      1.0\nbcd   12.0"
    assert table(numbers, ("name", "n"), left=1, foot=1).splitlines()[3] == "-" * 10


# ---- reading results


@pytest.mark.parametrize(
    ("fields", "accuracy", "total"),
    [
        ({"accuracy": 0.25, "correct": 5, "total": 20, "unit": "fraction"}, 0.25, 20),
        ({"exact_match": 0.25, "total_samples": 20, "forward_passes_mean": 7}, 0.25, 20),
        ({"accuracy": 25.0, "correct": 5, "total": 20}, 0.25, 20),
        ({"accuracy": 25.0, "unit": "percent", "total": 20}, 0.25, 20),
        ({"accuracy": 1.0, "unit": "percent", "total": 200}, 0.01, 200),
        ({"gsm8k": {"accuracy": 0.25, "total": 20}}, 0.25, 20),
        ({"results": {"gsm8k": {"accuracy": 0.25, "total": 20}}}, 0.25, 20),
    ],
)
def test_other_scripts_forms_are_read(tmp_path: Path, fields: dict, accuracy: float, total: int) -> None:
    path = tmp_path / "results_gsm8k.yaml"
    path.write_text(yaml.safe_dump(fields))
    found = read_result(path)
    assert (found.set, found.mode, found.part) == ("gsm8k", "latent", "")
    assert (found.accuracy, found.total) == (pytest.approx(accuracy), total)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("accuracy: 25.0\ntotal: 20\n", "without unit"),
        ("accuracy: 0.25\n", "no field total"),
        ("total: 20\n", "no field accuracy"),
        ("accuracy: often\ntotal: 20\n", "accuracy: 'often' is text, a number is needed"),
        ("accuracy: 0.3\ncorrect: 5\ntotal: 20\n", "is not correct / total"),
        ("accuracy: [0.3\n", "results_gsm8k.yaml"),
        ("- 1\n", "this is a list, a mapping is needed"),
        ("accuracy: 3\nunit: shares\ntotal: 2\n", "unit is 'shares'"),
    ],
)
def test_an_unreadable_results_file_is_named(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "results_gsm8k.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(wrong)) as error:
        read_result(path)
    assert "results_gsm8k.yaml" in error.value.message


def test_names_say_set_mode_and_part(tmp_path: Path) -> None:
    for label, fields in {
        "gsm8k-hard.cot": {"dataset": "gsm8k-hard", "mode": "cot"},
        "my.set.limit16": {"dataset": "my.set", "mode": "latent"},
        "gsm8k.ablate_swap": {"dataset": "gsm8k", "mode": "latent", "ablate": "swap"},
        "gsm8k.M12.T1": {"dataset": "gsm8k", "mode": "latent"},
    }.items():
        (tmp_path / f"results_{label}.yaml").write_text(yaml.safe_dump({"accuracy": 0.5, "total": 2, **fields}))
    (run,) = find_runs([tmp_path])
    assert run.status == "evaluated"
    named = {(r.set, r.mode, r.ablate, r.part) for r in run.results}
    assert named == {
        ("gsm8k-hard", "cot", None, ""), ("my.set", "latent", None, ".limit16"),
        ("gsm8k", "latent", "swap", ""), ("gsm8k", "latent", None, ".M12.T1"),
    }  # fmt: skip
    assert run.result("gsm8k") is None


def test_runs_are_found_in_every_layout(tmp_path: Path, tree: Path) -> None:
    for place in ("latent/E4_rkv/seed_42", "qwen05b_aug_seed_7", "E1_baseline"):
        results(tree / "outputs" / place, "gsm8k", 700)
    student = tree / "outputs" / "qwen05b_aug_seed_7" / "best_checkpoint"
    save_recipe(load_recipe("debug"), student / "recipe.yaml")  # a student's folder is not a run
    found = [(run.member, run.seed, run.status) for run in find_runs([tree / "outputs"])]
    assert found == [
        ("E1_baseline", None, "evaluated"), ("E4_rkv", 42, "evaluated"), ("llama1b_aug", 42, "finished"),
        ("llama1b_aug", 123, "finished"), ("llama1b_aug", 456, "finished"), ("qwen05b_aug", 7, "evaluated"),
    ]  # fmt: skip


def test_a_broken_member_is_there_and_its_suite_gives_the_order(tmp_path: Path) -> None:
    results(tmp_path / "a" / "seed_1", "gsm8k", 700)
    results(tmp_path / "b" / "seed_1", "gsm8k", 700)
    suite = {"members": {"b": {}, "a": {}}, "broken": {"a/seed_2": "out of memory"}}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    assert [(r.member, r.seed, r.status) for r in find_runs([tmp_path])] == [
        ("b", 1, "evaluated"), ("a", 1, "evaluated"), ("a", 2, "broken"),
    ]  # fmt: skip


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(RunError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_other_items_are_not_compared(tmp_path: Path) -> None:
    first = read_result(results(tmp_path / "a", "gsm8k", 700))
    with pytest.raises(DataError, match="different items"):
        same_items(first, read_result(results(tmp_path / "b", "gsm8k", 700, data_sha256="x")))
    with pytest.raises(DataError, match="has 1319 items"):
        same_items(first, read_result(results(tmp_path / "c", "gsm8k", 7, accuracy=0.7, total=10)))


# ---- aggregate


def test_mean_and_sample_spread_over_seeds(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aggregate(tree, "--datasets", "gsm8k", "svamp", "--model_name", "KAVA-LLaMA-3.2-1B") == 1
    root = tree / "outputs" / "llama1b_aug_multi_seed"
    found = json.loads((root / "aggregated_results.json").read_text())
    assert list(found) == ["llama1b_aug"]
    body = found["llama1b_aug"]
    assert (body["num_seeds"], body["model_name"], body["seeds"]) == (3, "KAVA-LLaMA-3.2-1B", [42, 123, 456])
    gsm8k = body["datasets"]["gsm8k"]
    assert gsm8k["accuracy_mean"] == pytest.approx(750 / TOTAL)
    assert gsm8k["accuracy_std"] == pytest.approx(10 / TOTAL)  # sample: sqrt((100 + 0 + 100) / 2)
    assert (gsm8k["forward_passes_mean"], gsm8k["forward_passes_std"]) == (7.0, 1.0)
    svamp = body["datasets"]["svamp"]
    assert (svamp["num_seeds"], svamp["missing"]) == (2, [456])
    assert svamp["accuracy_mean"] == pytest.approx(600 / TOTAL)  # the missing seed is no zero
    assert "svamp: no results of seed 456" in capsys.readouterr().err
    as_yaml = yaml.safe_load((root / "aggregated_results.yaml").read_text())
    assert json.loads(json.dumps(as_yaml)) == found


def test_one_seed_has_no_spread_and_a_missing_folder_is_a_missing_seed(tree: Path) -> None:
    assert aggregate(tree, "--datasets", "gsm8k", seeds=(42, 7)) == 1
    root = tree / "outputs" / "llama1b_aug_multi_seed"
    entry = json.loads((root / "aggregated_results.json").read_text())["llama1b_aug"]["datasets"]["gsm8k"]
    assert (entry["accuracy_std"], entry["num_seeds"], entry["missing"]) == (None, 1, [7])


def test_the_shells_glob_may_match_more_than_runs(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What kava wrote beside a run stands for the run; other files and folders are left out with a word."""
    root = tree / "outputs" / "llama1b_aug_multi_seed"
    for name in ("seed_42.out", "seed_42.log", "seed_7.out"):
        (root / name).write_text("text")
    (root / "seed_notes").mkdir()
    words = ["aggregate", "--datasets", "gsm8k", "--quiet", "--seed_dirs", *map(str, sorted(root.glob("seed_*")))]
    assert main([*words, f"{root}/../llama1b_aug_multi_seed/seed_42"]) == 1
    shown = capsys.readouterr()
    body = json.loads(shown.out)["llama1b_aug"]
    assert body["seeds"] == [123, 42, 456, 7]
    assert body["datasets"]["gsm8k"]["missing"] == [7]  # its training broke before it had a folder
    assert [line.rpartition("/")[2] for line in shown.err.splitlines()] == [
        "seed_42.log is a file, not a run's folder: left out",
        "seed_notes holds no run: left out",
        "seed_42 is named twice: it counts once",
        "warning: gsm8k: no results of seed 7",
    ]
    assert main(["aggregate", "--seed_dirs", f"{root}/nothing_*"]) == 2
    assert "no folder matches" in capsys.readouterr().err


def rehearse(folder: Path, seed: int, **fields: Any) -> None:
    """A run with results on sixteen items."""
    path = results(folder, "gsm8k", 4, total=16, accuracy=0.25, **fields)
    path.rename(path.with_name("results_gsm8k.limit16.yaml"))
    save_recipe(load_recipe("llama1b_aug", [f"system.seed={seed}", "training.max_steps=4"]), folder / "recipe.yaml")


def test_a_rehearsal_is_aggregated_as_one_and_never_with_whole_results(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree / "outputs" / "rehearsal"
    for seed in (1, 2):
        rehearse(root / f"seed_{seed}", seed)
    words = ["aggregate", "--seed_dirs", f"{root}/seed_1", f"{root}/seed_2"]
    files = [f"--output_json={root}/aggregated_results.json"]
    for more in (["--quick_test"], ["--quick_test", "--datasets", "gsm8k"], []):
        assert main([*words, *files, *more]) == 0
        assert "llama1b_aug (a rehearsal" in capsys.readouterr().out
        body = json.loads((root / "aggregated_results.json").read_text())["llama1b_aug"]
        assert body["rehearsal"] is True
        assert list(body["datasets"]) == ["gsm8k.limit16"]
        assert body["datasets"]["gsm8k.limit16"]["accuracy_mean"] == 0.25
    assert main([*words, "--datasets", "gsm8k"]) == 2  # asked for the whole set
    assert "results there are: gsm8k.limit16" in capsys.readouterr().err
    results(root / "seed_1", "gsm8k", 700)
    assert main([*words, "--quiet"]) == 1
    assert list(json.loads(capsys.readouterr().out)["llama1b_aug"]["datasets"]) == ["gsm8k"]
    code, _, rows = formatted(tree)  # only the rehearsal is there: its row says so
    assert (code, [row["Model"] for row in rows]) == (0, ["LLaMA-3.2-1B (rehearsal)"])
    aggregate(tree, "--datasets", "gsm8k")
    capsys.readouterr()
    code, _, rows = formatted(tree)
    assert (code, [row["Model"] for row in rows]) == (0, ["LLaMA-3.2-1B"])
    assert "rehearsal: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data_sha256": "other"}, "different items"),
        ({"cue": "generated"}, "has cue"),
        ({"accuracy": 0.7, "total": 1000}, "has 1319 items"),
    ],
)
def test_seeds_that_were_measured_otherwise_are_refused(
    tree: Path, fields: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results(tree / "outputs" / "llama1b_aug_multi_seed" / "seed_123", "gsm8k", 700, **fields)
    assert aggregate(tree) == 2
    assert said in capsys.readouterr().err


def test_seeds_of_other_recipes_and_seeds_without_anything_are_refused(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aggregate(tree, "--datasets", "gsm8k-hard") == 2
    assert "no seed has results of gsm8k-hard" in capsys.readouterr().err
    folder = tree / "outputs" / "llama1b_aug_multi_seed" / "seed_123"
    save_recipe(load_recipe("llama1b_aug", ["rkv.lambda=0.5", "system.seed=123"]), folder / "recipe.yaml")
    assert aggregate(tree) == 2
    assert "other settings" in capsys.readouterr().err


# ---- format


def formatted(tree: Path, *words: str) -> tuple[int, str, list[dict[str, str]]]:
    tex, table = tree / "paper_tables.tex", tree / "results.csv"
    code = main(
        ["format", "--input_dir", str(tree / "outputs"), "--output_latex", str(tex), "--output_csv", str(table), *words]
    )
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    return code, tex.read_text() if tex.is_file() else "", rows


def test_tables_as_the_guide_shows_them(tree: Path) -> None:
    aggregate(tree, "--datasets", "gsm8k", "gsm8k-hard", "svamp")
    code, tex, rows = formatted(tree)
    assert code == 0
    assert r"\begin{table}[t]" in tex
    assert r"\begin{tabular}{llccc}" in tex
    assert r"Model & Dataset & GSM8k & GSM8k-Hard & SVAMP \\" in tex
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 56.9 (0.8) & - & 45.5 (0.0) \\" in tex
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 7.0 (1.0) & - & 6.5 (0.0) \\" in tex
    assert r"\label{tab:accuracy}" in tex
    assert r"\label{tab:efficiency}" in tex
    assert "SVAMP: 2" in tex  # a caption says where a seed is missing
    assert list(rows[0]) == [
        "Model", "Dataset", "Eval_Dataset", "Accuracy_Mean", "Accuracy_Std", "Forward_Passes_Mean",
        "Forward_Passes_Std", "Num_Seeds",
    ]  # fmt: skip
    assert [(row["Eval_Dataset"], row["Accuracy_Mean"], row["Num_Seeds"]) for row in rows] == [
        ("gsm8k", "0.568613", "3"), ("gsm8k-hard", "", "0"), ("svamp", "0.45489", "2"),
    ]  # fmt: skip


def test_the_papers_numbers_stand_beside_ours_with_their_source(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aggregate(tree, "--datasets", "gsm8k")
    _, tex, _ = formatted(tree)
    assert "arXiv 2510.02312" in tex
    assert r"63.4 & 53.9 & 54.2 & 56.5 & 56.9 & $+0.4$" in tex
    out = capsys.readouterr().out
    assert "arXiv 2510.02312" in out
    assert "+0.4" in out
    assert not any(value in tex for value in ("34.2", "48.3"))  # not the paper's
    assert all(0 < value < 100 for row in TABLE.values() for value in row)


def test_columns_follow_the_sets_and_special_characters_are_escaped(tree: Path) -> None:
    aggregate(tree, "--datasets", "gsm8k")
    own = tree / "outputs" / "my_50%_recipe"
    own.mkdir()
    entry = {"accuracy_mean": 0.5, "accuracy_std": None, "forward_passes_mean": None, "forward_passes_std": None}
    body = {"num_seeds": 1, "datasets": {"my_set": entry}}
    (own / "aggregated_results.yaml").write_text(yaml.safe_dump({"my_50%_recipe": body}))
    _, tex, rows = formatted(tree, "--style", "pm")
    assert r"Model & Dataset & GSM8k & my\_set \\" in tex
    assert r"my\_50\%\_recipe & - & - & 50.0 \\" in tex
    assert r"$56.9 \pm 0.8$" in tex
    assert rows[-1]["Num_Seeds"] == "1"


def test_variants_of_a_recipe_are_told_apart(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aggregate(tree, "--datasets", "gsm8k")
    assert formatted(tree)[2][0]["Model"] == "LLaMA-3.2-1B"
    assert ": 1 recipe\n" in capsys.readouterr().out
    source = (tree / "outputs" / "llama1b_aug_multi_seed" / "aggregated_results.json").read_text()
    for folder, name in (("b", "llama1b_aug"), ("c", "no_kv")):
        (tree / "outputs" / folder).mkdir()
        path = tree / "outputs" / folder / "aggregated_results.json"
        path.write_text(source.replace('"llama1b_aug"', f'"{name}"'))
    code, tex, rows = formatted(tree)
    assert (code, [row["Model"] for row in rows]) == (0, [
        "LLaMA-3.2-1B (llama1b_aug, b)", "LLaMA-3.2-1B (no_kv)", "LLaMA-3.2-1B (llama1b_aug, llama1b_aug_multi_seed)",
    ])  # fmt: skip
    assert r"LLaMA-3.2-1B (no\_kv) & GSM8k-AUG & 56.9 (0.8)" in tex
    assert "kava aggregate --config_name NAME" in capsys.readouterr().err
    for folder in ("b", "c"):
        (tree / "outputs" / folder / "aggregated_results.json").write_text("{}")
    (tree / "outputs" / "llama1b_aug_multi_seed" / "aggregated_results.json").write_text("{}")
    assert formatted(tree)[0] == 0
    assert ": 0 recipes\n" in capsys.readouterr().out


def test_only_one_file_when_asked(tree: Path) -> None:
    aggregate(tree, "--datasets", "gsm8k")
    assert formatted(tree, "--latex_only")[2] == []
    (tree / "paper_tables.tex").unlink()
    assert formatted(tree, "--csv_only")[1] == ""
    assert formatted(tree, "--csv_only", "--latex_only")[0] == 2


def test_bad_input_of_format(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert formatted(tree)[0] == 2
    assert "holds no aggregated_results" in capsys.readouterr().err
    path = tree / "outputs" / "x" / "aggregated_results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"x": {"num_seeds": 3, "datasets": {"gsm8k": {"accuracy_mean": 56.5}}}}))
    assert formatted(tree)[0] == 2
    assert "accuracies are fractions" in capsys.readouterr().err
    path.write_text("{}[")
    assert formatted(tree)[0] == 2
    assert "aggregated_results.json" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_tables_compile(tree: Path) -> None:
    aggregate(tree, "--datasets", "gsm8k", "gsm8k-hard", "svamp")
    for style in ("paren", "pm"):
        _, tex, _ = formatted(tree, "--style", style)
        document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + tex + "\\end{document}\n"
        (tree / "page.tex").write_text(document)
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
            cwd=tree,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]


def test_students_that_write_their_steps_are_aggregated_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The explicit line's results are those of mode cot, unless another mode is asked for."""
    folders = [tmp_path / f"seed_{seed}" for seed in (1, 2)]
    for folder, correct in zip(folders, (600, 700), strict=True):
        path = results(folder, "gsm8k", correct, mode="cot")
        path.rename(path.with_name("results_gsm8k.cot.yaml"))
        save_recipe(load_recipe("explicit_embedded", [f"system.seed={folder.name[-1]}"]), folder / "recipe.yaml")
        (folder / "meta.json").write_text(json.dumps({"finished": True, "steps": 9}))
    words = ["aggregate", "--seed_dirs", *map(str, folders), "--quiet"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["explicit_embedded"]["datasets"]["gsm8k"]
    assert found["accuracy_mean"] == pytest.approx(650 / TOTAL)
    assert main([*words, "--mode", "latent", "--datasets", "gsm8k"]) == 2
    other = load_recipe("explicit_embedded", ["system.seed=2", "explicit.target_len=5"])
    save_recipe(other, folders[1] / "recipe.yaml")
    assert main(words) == 2
    assert "explicit.target_len" in capsys.readouterr().err
