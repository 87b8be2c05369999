"""kava analyze on made-up run folders: what it reads, shows, pairs and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kava.cli.main import main

SEEDS = (42, 123, 456, 789, 1024)
ITEMS = 200
DATA = "ab" * 32


def run(
    folder: Path,
    share: float | None = 0.5,
    seed: int | None = 42,
    items: int = ITEMS,
    sha256: str = "cd" * 32,
    mode: str = "latent",
    set_name: str = "chains",
    predictions: bool = True,
    draw: int = 0,
    meta: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    kv: float | None = None,
    losses: dict[str, float] | None = None,
) -> Path:
    """A run's folder as training and evaluation leave it; `share` of the items is right, None = not evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([draw, seed or 0, sum(map(ord, folder.parent.name))])
    training = {"about": {"name": "toy"}, "training": {"max_steps": 800}, "evaluation": {"datasets": [set_name]}}
    training["system"] = {"seed": seed}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(training | (recipe or {})))
    facts = {"finished": True, "steps": 800, "effective_batch_size": 64, "data": {"sha256": DATA}, "git": "f" * 40}
    facts |= {"versions": {"torch": "2.0"}, "device": "cpu"}
    (folder / "meta.json").write_text(json.dumps(facts | (meta or {})))
    noise = np.exp(generator.normal(0, 0.02, 16)).tolist()
    terms = {} if kv is None else {"kv": kv}
    lines = [
        {"step": 50 * (i + 1), "loss": 0.2 * wobble, "ce_student": 0.1 * wobble, "grad_norm": 1.0, **terms}
        for i, wobble in enumerate(noise)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if share is not None:
        results(folder, generator.random(items) < share, seed, sha256, mode, set_name, predictions, losses)
    return folder


def results(folder, right, seed, sha256, mode, set_name, predictions, losses) -> None:
    name = set_name + ("" if mode == "latent" else f".{mode}")
    fields = {"dataset": set_name, "mode": mode, "cue": "given", "accuracy": float(right.mean()), "unit": "fraction"}
    fields |= {"correct": int(right.sum()), "total": len(right), "avg_forward_passes": 5.0, "data_sha256": sha256}
    fields |= {"config": "toy", "seed": seed, **({"losses": losses} if losses else {})}
    (folder / f"results_{name}.yaml").write_text(yaml.safe_dump(fields))
    if predictions:
        lines = [json.dumps({"id": f"q{i}", "correct": bool(one)}) + "\n" for i, one in enumerate(right)]
        (folder / f"predictions_{name}.jsonl").write_text("".join(lines))


def tree(base: Path, shares: dict[str, float], seeds=SEEDS, **settings: Any) -> Path:
    for name, share in shares.items():
        for seed in seeds:
            run(base / name / f"seed_{seed}", share, seed, **settings)
    return base


FIVE = {"E1_baseline": 0.3, "E2_full_kv": 0.6, "E3_right_crop": 0.31, "E4_rkv": 0.6, "E5_shuffled": 0.3}


def analyze(capsys, *words: Any) -> dict[str, Any]:
    assert main(["analyze", *map(str, words), "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: Any) -> str:
    assert main(["analyze", *map(str, words)]) == 2
    return capsys.readouterr().err


def words(document) -> dict[str, str]:
    return {claim["name"]: claim["word"] for claim in document["claims"]}


def rows(document) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["experiments"]}


def deciding(document, name: str) -> dict[str, Any]:
    claim = next(claim for claim in document["claims"] if claim["name"] == name)
    return claim["comparisons"][0]


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return tree(tmp_path_factory.mktemp("suite") / "latent", FIVE)


@pytest.fixture
def copy(suite, tmp_path) -> Path:
    """The suite for one test alone."""
    return Path(shutil.copytree(suite, tmp_path / "latent", ignore=shutil.ignore_patterns("EXPERIMENT_REPORT.txt")))


def test_the_report_holds_table_claims_control_and_rules(copy, capsys):
    saved = copy / "analysis.json"
    assert main(["analyze", "--output_base", str(copy), "--save_json", str(saved)]) == 0
    shown = capsys.readouterr().out
    report = (copy / "EXPERIMENT_REPORT.txt").read_text(encoding="ascii")
    assert report in shown
    heads = [
        "EXPERIMENTS",
        "ACCURACY OF EVERY SEED",
        "CLAIMS OF THE GUIDE",
        "NEGATIVE CONTROL",
        "HOW TO READ",
        "MADE WITH",
    ]
    places = [report.index(f"\n{head}") for head in heads]
    assert places == sorted(places)
    assert max(map(len, report.splitlines())) <= 130
    document = json.loads(saved.read_text())
    assert words(document) == {
        "compression": "supported", "compensation": "supported", "stability": "inconclusive", "control": "supported",
    }  # fmt: skip
    assert "margin: 2 points" in report
    assert "could be tested (5)" in report
    assert document["corrected_over"] == 5
    for word in ("VALIDATED", "proves", "proven"):
        assert word not in report


def test_the_numbers_are_those_of_the_files(suite, capsys):
    document = analyze(capsys, "--output_base", suite)
    right = {}
    for name in ("E2_full_kv", "E1_baseline"):
        for seed in SEEDS:
            lines = (suite / name / f"seed_{seed}" / "predictions_chains.jsonl").read_text().splitlines()
            right[name, seed] = [json.loads(line)["correct"] for line in lines]
    row = rows(document)["E2_full_kv"]
    accuracies = [sum(right["E2_full_kv", seed]) / ITEMS for seed in SEEDS]
    assert row["accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert row["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert row["terms"]["kv"] is None
    one = deciding(document, "compression")
    both = {seed: list(zip(right["E2_full_kv", seed], right["E1_baseline", seed], strict=True)) for seed in SEEDS}
    expected = [sum(a - b for a, b in both[seed]) / ITEMS for seed in SEEDS]
    assert one["differences"] == pytest.approx(expected)
    assert one["low"] < one["difference"] < one["high"]
    for pair, seed in zip(one["mcnemar"], SEEDS, strict=True):
        counts = (sum(a and not b for a, b in both[seed]), sum(b and not a for a, b in both[seed]))
        assert (pair["seed"], pair["only_first"], pair["only_second"]) == (seed, *counts)


def test_items_are_paired_by_id_and_seeds_by_number(copy, capsys):
    before = deciding(analyze(capsys, "--output_base", copy), "compression")
    path = copy / "E2_full_kv" / "seed_42" / "predictions_chains.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    (copy / "E1_baseline" / "seed_42").rename(copy / "E1_baseline" / "seed_9999")  # the recipe knows the seed
    after = deciding(analyze(capsys, "--output_base", copy), "compression")
    assert after == before


def test_a_missing_seed_is_named_and_never_imputed(copy, capsys):
    shutil.rmtree(copy / "E1_baseline" / "seed_456")
    (copy / "E1_baseline" / "seed_789" / "results_chains.yaml").unlink()
    meta = copy / "E2_full_kv" / "seed_123" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "finished": False, "steps": 10}))
    document = analyze(capsys, "--output_base", copy)
    assert rows(document)["E1_baseline"]["absent"] == {"456": "no run", "789": "finished, no results of chains"}
    assert rows(document)["E2_full_kv"]["absent"] == {"123": "stopped"}
    assert rows(document)["E2_full_kv"]["status"] == "4 finished, 1 stopped"
    one = deciding(document, "compression")
    assert one["seeds"] == [42, 1024]
    assert one["unpaired"] == [123, 456, 789]
    claim = document["claims"][0]
    assert (claim["word"], claim["reason"]) == (
        "inconclusive", "E2_full_kv against E1_baseline: only 2 shared seeds, 3 are needed",
    )  # fmt: skip
    report = (copy / "EXPERIMENT_REPORT.txt").read_text()
    assert "E1_baseline, seed 456: no run" in report
    assert "left out: seeds 123, 456, 789, which only one of them has" in report


def test_a_missing_member_leaves_its_claims_inconclusive(copy, capsys):
    shutil.rmtree(copy / "E4_rkv")
    document = analyze(capsys, "--output_base", copy)
    assert words(document) == {
        "compression": "supported", "compensation": "inconclusive", "stability": "inconclusive", "control": "inconclusive",
    }  # fmt: skip
    named = analyze(capsys, "--output_base", copy, "--experiments", "E1_baseline", "E4_rkv")
    assert rows(named)["E4_rkv"]["status"] == "missing"


def test_broken_members_and_titles_come_from_the_suite(copy, capsys):
    shutil.rmtree(copy / "E3_right_crop")
    members = {name: {"title": f"title of {name}", "settings": [], "mode": "latent"} for name in FIVE}
    document = {"suite": "e1-e5", "config": "toy", "seeds": list(SEEDS), "members": members, "sets": ["chains"]}
    document["broken"] = {f"E3_right_crop/seed_{seed}": "error: no memory" for seed in SEEDS}
    (copy / "suite.json").write_text(json.dumps(document))
    found = analyze(capsys, "--output_base", copy.parent)  # one folder above works too
    row = rows(found)["E3_right_crop"]
    assert (row["status"], row["title"]) == ("broken", "title of E3_right_crop")
    assert row["absent"]["42"] == "broken: error: no memory"
    assert words(found)["compression"] == "supported"
    assert (copy.parent / "EXPERIMENT_REPORT.txt").is_file()


def test_plain_run_folders_are_one_seed_each(tmp_path, capsys):
    for name, share in FIVE.items():
        run(tmp_path / name, share, kv=None if name == "E1_baseline" else 0.25)
    document = analyze(capsys, "--output_base", tmp_path)
    assert document["seeds"] == [42]
    assert rows(document)["E2_full_kv"]["terms"]["kv"] == 0.25
    assert rows(document)["E2_full_kv"]["accuracy_std"] is None
    assert set(words(document).values()) == {"inconclusive"}
    assert deciding(document, "compression")["low"] is None
    assert (
        deciding(document, "compression")["mcnemar"][0]["p"] < 1e-6
    )  # shown, but one seed says nothing about training


def test_results_alone_are_enough_for_the_table_but_not_for_pairing(tmp_path, capsys):
    tree(tmp_path, FIVE, predictions=False)
    for name in ("recipe.yaml", "meta.json", "log.jsonl"):
        for path in tmp_path.rglob(name):
            path.unlink()
    document = analyze(capsys, "--output_base", tmp_path)
    assert rows(document)["E4_rkv"]["status"] == "evaluated"
    assert rows(document)["E4_rkv"]["accuracy_mean"] == pytest.approx(0.6, abs=0.05)
    assert "nothing can be paired" in rows(document)["E4_rkv"]["absent"]["42"]
    assert set(words(document).values()) == {"inconclusive"}


def test_training_without_evaluation_shows_losses_only(tmp_path, capsys):
    for name in FIVE:
        run(tmp_path / name, None)
    document = analyze(capsys, "--output_base", tmp_path)
    assert document["dataset"] is None
    assert rows(document)["E1_baseline"]["terms"]["ce"] == pytest.approx(0.1, rel=0.2)
    assert set(words(document).values()) == {"inconclusive"}
    assert "run kava evaluate" in (tmp_path / "EXPERIMENT_REPORT.txt").read_text()


def test_the_controls_are_asked_where_they_are_there(tmp_path, capsys):
    shares = {"E1_baseline": 0.4, "E4_rkv": 0.4, "steps": 0.95, "steps_examples": 0.4, "random": 0.4, "uniform": 0.8}
    tree(tmp_path, shares)
    run(tmp_path / "demo", 0.1)
    for seed in SEEDS:
        run(tmp_path / "full_cot" / f"seed_{seed}", 0.9, seed, mode="cot")
    document = analyze(capsys, "--output_base", tmp_path)
    found = words(document)
    assert (found["content_steps"], found["steps"], found["choice"]) == ("supported", "supported", "not supported")
    assert "latents" not in found
    assert rows(document)["full_cot"]["accuracy_mean"] == pytest.approx(0.9, abs=0.05)
    assert document["left_out"] == ["demo"]


def test_the_set_is_the_common_one_or_the_one_named(copy, capsys):
    for folder in copy.glob("E[12]_*/seed_*"):
        generator = np.random.default_rng(int(folder.name[5:]))
        results(folder, generator.random(50) < 0.5, int(folder.name[5:]), None, "latent", "alpha", True, {"ce": 0.5})
    assert analyze(capsys, "--output_base", copy)["dataset"] == "chains"
    document = analyze(capsys, "--output_base", copy, "--dataset", "alpha")
    assert (document["dataset"], document["items"]) == ("alpha", 50)
    assert rows(document)["E1_baseline"]["losses"] == {"ce": 0.5}
    assert rows(document)["E4_rkv"]["accuracy_mean"] is None
    assert "there are: alpha, chains" in refused(capsys, "--output_base", copy, "--dataset", "beta")
    for path in copy.glob("E1_*/seed_*/results_chains.yaml"):
        path.unlink()
    assert "no set that every experiment was asked" in refused(capsys, "--output_base", copy)


def test_the_margin_is_shown_and_used(copy, capsys):
    tree(copy, {"E3_right_crop": 0.61}, draw=1)
    wide = analyze(capsys, "--output_base", copy, "--margin", "0.5")
    assert wide["margin"] == 0.5
    assert "50 points" in (copy / "EXPERIMENT_REPORT.txt").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": ITEMS - 1}, "results_chains.yaml has 199"),
        ({"sha256": "ee" * 32}, "different items"),
        ({"meta": {"steps": 400}}, "unequal budget"),
        ({"meta": {"data": {"sha256": "00" * 32}}}, "unequal budget"),
        ({"meta": {"effective_batch_size": 32}}, "unequal budget"),
        ({"recipe": {"about": {"name": "other"}}}, "unequal budget"),
        ({"recipe": {"training": {"max_steps": 800, "learning_rate": 0.1}}}, "different settings in E2_full_kv"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(copy, capsys, change, message):
    bad = run(copy / "E2_full_kv" / "seed_123", 0.6, 123, **change)
    error = refused(capsys, "--output_base", copy)
    assert message in error
    assert str(bad) in error
    assert not (copy / "EXPERIMENT_REPORT.txt").exists()


def test_torn_and_contradicting_files_are_named(copy, capsys):
    path = copy / "E4_rkv" / "seed_42" / "predictions_chains.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-3]))
    assert "its predictions 197 of them" in refused(capsys, "--output_base", copy)
    path.write_text(whole.replace('"correct": true', '"correct": false', 1))
    assert "counts" in refused(capsys, "--output_base", copy)
    path.write_text(whole.replace('"q0"', '"other"', 1))
    assert "predictions of different items" in refused(capsys, "--output_base", copy)
    path.write_text(whole)
    torn = copy / "E4_rkv" / "seed_42" / "results_chains.yaml"
    torn.write_text("accuracy: [0.5")
    assert str(torn) in refused(capsys, "--output_base", copy)


def test_empty_folders_unknown_names_and_doubles_are_refused(suite, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no run" in refused(capsys, "--output_base", empty)
    assert "no such folder" in refused(capsys, "--output_base", tmp_path / "nowhere")
    assert "did you mean 'E4_rkv'?" in refused(capsys, "--output_base", suite, "--experiments", "E4_rkw")
    run(tmp_path / "own" / "seed_42", 0.5)
    assert "only own" in refused(capsys, "--output_base", tmp_path / "own")
    for line in ("latent", "explicit"):
        run(tmp_path / "two" / line / "E1_baseline" / "seed_42")
    assert "E1_baseline, seed 42 is there twice" in refused(capsys, "--output_base", tmp_path / "two")
