"""Phases and stages of several teachers: recipes, suites as data, jobs that wait for one another, claims and their words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_analyze import analyze, deciding, refused, run, words

from kava.cli.main import main
from kava.config import Recipe, differing, load_recipe
from kava.lab.analysis.claims import CLAIMS, Claim, Evidence, MemberComparison, claims_of, judge
from kava.lab.plan import SUITES
from kava.lab.run_local import Job, run_jobs
from kava.lab.suites import phases

SEVERAL = ("multi_teacher", "multi_teacher_embedded", *(f"phase{n}" for n in range(1, 6)))
SEEDS = (42, 123, 456, 789, 1024)


# ---- recipes


def test_the_parent_has_the_values_of_the_guides_command_line() -> None:
    recipe = load_recipe("multi_teacher")
    explicit, loss, training = recipe.explicit, recipe.loss, recipe.training
    assert recipe.model.name == "Qwen/Qwen2.5-0.5B-Instruct"
    assert [one.model for one in recipe.mixture.teachers] == ["gpt2", "gpt2-medium", "gpt2-large"]
    assert (explicit.lambda_k * loss.alpha2_kv / 2, explicit.lambda_v * loss.alpha2_kv / 2) == (1, 1)
    assert (explicit.beta_cos, explicit.gamma_kl, loss.student_ce, loss.kv_loss_type) == (0.1, 0.01, 1, "mse")
    assert (training.epochs, training.batch_size, training.gradient_accumulation_steps) == (3, 4, 8)
    assert training.learning_rate == 2e-5
    assert (recipe.dataset.name, recipe.dataset.max_length) == ("openai/gsm8k", 512)


def test_each_phase_changes_what_it_is_about() -> None:
    """Beside who the teachers are: phases 1 and 2 train no adapter, 4 a router, 5 codes."""
    parent = load_recipe("multi_teacher")

    def changed(phase: int) -> set[str]:
        lines = differing(parent, load_recipe(f"phase{phase}"))
        return {line.split()[0] for line in lines} - {"mixture.teachers", "mixture.weights"}

    assert [changed(phase) for phase in (1, 2, 3, 5)] == [
        {"projector.trainable"}, {"projector.trainable"}, set(), {"mixture.space"}]  # fmt: skip
    assert changed(4) == {"mixture.fusion", "mixture.per_layer", "mixture.entropy"}
    first = load_recipe("phase1").mixture
    assert [(one.model, one.prompt) for one in first.teachers] == [(None, "default"), (None, "cot")]
    assert first.weights == (0.7, 0.3)


# ---- suites as data


def members(suite: str, config: str) -> dict[str, tuple[Any, Recipe]]:
    return {one.name: (one, load_recipe(config, one.settings)) for one in SUITES[suite].members(load_recipe(config))}


@pytest.mark.parametrize("config", SEVERAL)
def test_phases_hold_every_teacher_alone_and_change_nothing_but_the_teaching(config: str) -> None:
    base, found = load_recipe(config), members("phases", config)
    labels = [one.label for one in base.mixture.teachers]
    assert list(found) == ["sft", *(f"single_{one}" for one in labels), "fixed", "similarity", "learnable", "z"]
    for name, (member, recipe) in found.items():
        assert member.mode == "cot"
        keys = {line.split()[0] for line in differing(base, recipe)}
        assert keys <= {"loss.alpha2_kv", "mixture.teachers", "mixture.weights", "mixture.fusion", "mixture.space"}, (
            name
        )
    for one in base.mixture.teachers:
        (alone,) = found[f"single_{one.label}"][1].mixture.teachers
        assert alone == one.model_copy(update={"name": one.label})
    assert [found[name][1].mixture.fusion for name in ("fixed", "similarity", "learnable", "z")] == [
        "fixed", "similarity", "learnable", "fixed"]  # fmt: skip
    assert {name for name, (_, recipe) in found.items() if recipe.mixture.space == "z"} - {"sft"} == {"z"}


def test_a_teacher_alone_keeps_its_layer_map() -> None:
    files = ["mixture.layer_map=cka", "mixture.layer_map_files=[a.json, b.json, c.json]"]
    recipe = load_recipe("multi_teacher", [*files, "mixture.weights=[0.5, 0.3, 0.2]"])
    settings = phases.only(recipe, [recipe.mixture.teachers[1]])
    assert load_recipe("multi_teacher", [*files[:1], *settings]).mixture.layer_map_files == ("b.json",)


def test_stages_go_on_where_the_one_before_ended() -> None:
    found = members("stages", "phase4")
    assert {name: member.after for name, (member, _) in found.items()} == {
        "fixed": "", "similarity": "fixed", "learnable": "similarity", "fixed_2": "fixed", "fixed_3": "fixed_2",
    }  # fmt: skip
    assert {recipe.training.max_steps for _, recipe in found.values()} == {load_recipe("phase4").training.max_steps}


@pytest.mark.parametrize("config", SEVERAL)
def test_ablations_of_several_teachers(config: str) -> None:
    base = load_recipe(config)
    found = members("ablations", config)
    assert all(one == "base" or differing(base, recipe) for one, (_, recipe) in found.items())
    groups = {name.partition("_")[0] for name in found}
    assert groups >= {"base", "routing", "teachers", "align"}
    assert ("only" in groups) == (base.mixture.space == "kv")
    assert len([name for name in found if name.startswith("routing_")]) == 4
    assert len([name for name in found if name.startswith("teachers_")]) == len(base.mixture.teachers) - 1


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(28, ("0-11", "12-23")), (24, ("0-9", "10-20")), (2, ("0-0", "1-1")), (1, ("0-0",))],
)
def test_layers_are_cut_as_the_guide_cuts_28(layers: int, wanted: tuple[str, ...]) -> None:
    found = phases.by_layer(load_recipe("multi_teacher"), layers)
    assert tuple(one.settings[0].partition("=")[2] for one in found) == wanted
    assert phases.by_layer(load_recipe("explicit_hpc"), layers) == ()


def test_the_latent_line_has_what_it_knows() -> None:
    recipe = load_recipe("embedded", ["mixture.teachers=[a, b]", "mixture.query=embedding", "mixture.fusion=learnable"])
    found = phases.members(recipe)
    assert [one.name for one in found] == ["sft", "single_a", "single_b", "fixed", "learnable"]
    assert {one.mode for one in (*found, *phases.ablations(recipe))} == {"latent"}
    assert "routing_similarity" not in [one.name for one in phases.ablations(recipe)]


# ---- the verb


@pytest.mark.parametrize("suite", ["phases", "stages"])
def test_a_recipe_of_one_teacher_is_told_what_is_missing(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", suite, "--config", "explicit_embedded"]) == 2
    error = capsys.readouterr().err
    assert f"suite {suite} has no members for recipe explicit_embedded" in error
    assert "mixture.teachers=[A, B]" in error


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The jobs of `kava suite stages WORDS`, which are not run."""
    seen: list[Job] = []
    monkeypatch.setattr("kava.cli.suite.run_jobs", lambda jobs, *_: seen.extend(jobs) or {})
    monkeypatch.setattr("kava.lab.suites.record.find_runs", lambda roots: [])
    monkeypatch.chdir(tmp_path)

    def run_(*more: str) -> tuple[int, list[Job]]:
        (tmp_path / "outputs" / "stages" / "x").mkdir(parents=True, exist_ok=True)
        return main(["suite", "stages", "--config", "multi_teacher_embedded", "--quiet", *more]), seen

    return run_


def test_every_stage_begins_with_the_best_checkpoint_of_its_own_seed(queued) -> None:
    code, jobs = queued("--seeds", "1", "2")
    assert code == 0
    assert [job.label for job in jobs][:5] == [
        f"{name}/seed_1" for name in ("fixed", "similarity", "learnable", "fixed_2", "fixed_3")]  # fmt: skip
    by_label = {job.label: job for job in jobs}
    third = by_label["learnable/seed_2"]
    assert third.after == "similarity/seed_2"
    assert "training.start_from=outputs/stages/similarity/seed_2/best_checkpoint" in third.train
    assert not any(word.startswith("training.start_from") for word in by_label["fixed/seed_2"].train)


def test_a_stage_alone_needs_the_one_before(queued, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert queued("--seeds", "1", "--members", "learnable")[0] == 2
    assert (
        "learnable begins where similarity ends, and there is no outputs/stages/similarity" in capsys.readouterr().err
    )
    (tmp_path / "outputs/stages/similarity/seed_1/best_checkpoint").mkdir(parents=True)
    code, jobs = queued("--seeds", "1", "--members", "learnable")
    assert (code, [job.label for job in jobs]) == (0, ["learnable/seed_1"])


# ---- jobs that wait


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch):
    """What is started when; a process named in `bad` ends with code 1. All end at the first look but the slow ones."""
    from kava.lab import run_local as runner

    events: list[str] = []
    bad: set[str] = set()

    class Process:
        def __init__(self, command: list[str], **_: Any):
            self.name, self.looks = command[-1], 3
            events.append(f"+{self.name}")

        def poll(self) -> int | None:
            self.looks -= 1
            if self.looks > 0:
                return None
            events.append(f"-{self.name}")
            return int(self.name in bad)

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    monkeypatch.setattr(runner, "POLL", 0)
    return events, bad


def chain(folder: Path, *pairs: tuple[str, str]) -> list[Job]:
    return [Job(name, folder / name, (name,), after=after) for name, after in pairs]


def test_a_job_waits_for_the_one_before_and_lets_others_pass(processes, tmp_path: Path) -> None:
    events, _ = processes
    jobs = chain(tmp_path, ("a1", ""), ("b1", "a1"), ("c1", "b1"), ("a2", ""), ("b2", "a2"))
    assert run_jobs(jobs, parallel=2, quiet=True) == {}
    assert events[:2] == ["+a1", "+a2"]
    for first, then in (("a1", "b1"), ("b1", "c1"), ("a2", "b2")):
        assert events.index(f"-{first}") < events.index(f"+{then}")


def test_what_begins_where_a_broken_one_ends_is_broken_too(processes, tmp_path: Path) -> None:
    events, bad = processes
    bad.add("a1")
    jobs = chain(tmp_path, ("a1", ""), ("b1", "a1"), ("c1", "b1"), ("a2", ""), ("b2", "a2"))
    broken = run_jobs(jobs, parallel=1, quiet=True)
    assert broken["b1"] == "it begins where a1 ends, which broke"
    assert broken["c1"] == "it begins where b1 ends, which broke"
    assert set(broken) == {"a1", "b1", "c1"}
    assert [event for event in events if event.startswith("+")] == ["+a1", "+a2", "+b2"]


# ---- claims


NAMES = ("sft", "single_a", "single_b", "fixed", "similarity", "learnable", "z")
STAGES = ("fixed", "similarity", "learnable", "fixed_2", "fixed_3")


def test_claims_are_about_the_members_there_are() -> None:
    assert claims_of(["E1_baseline", "E4_rkv"]) == CLAIMS
    found = {claim.name: claim for claim in claims_of(NAMES)}
    assert list(found) == ["several", "router", "fixed_sft", "z_sft"]
    best = [(one.first, one.second) for one in found["several"].comparisons if one.decides]
    assert best == [("fixed", "single_a"), ("fixed", "single_b")]
    assert found["several"].expected == (("minimum", 0.03), ("ideal", 0.08))
    assert found["router"].expected == (("minimum", 0.015), ("ideal", 0.04))
    assert [found[name].source for name in found] == ["guide", "guide", "ours", "ours"]
    (router,) = claims_of(STAGES)  # the third stage has had three times the updates of the first
    assert [(one.second, one.decides) for one in router.comparisons] == [
        ("fixed_3", True), ("fixed", False), ("similarity", False)]  # fmt: skip
    assert len(claims_of([*NAMES, "E1_baseline"])) == len(CLAIMS) + 4


def of(share: float, items: int = 2000, wobble: float = 0.0) -> Evidence:
    """A member whose right items are the first ones of all, a few more or fewer from seed to seed."""
    shares = {seed: share + wobble * (i - 2) for i, seed in enumerate(SEEDS)}
    return Evidence({seed: np.arange(items) < one * items for seed, one in shares.items()})


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.15, "minimum of 3 points reached, ideal of 8 points reached"),
        (0.055, "minimum of 3 points reached, ideal of 8 points excluded"),
        (0.005, "minimum of 3 points excluded, ideal of 8 points excluded"),
        (-0.1, "minimum of 3 points excluded, ideal of 8 points excluded"),
    ],
)
def test_expected_effects_are_read_off_the_interval(gain: float, said: str) -> None:
    claim = Claim(
        "x", "a beats b", (MemberComparison("a", "above", "b"),), expected=(("minimum", 0.03), ("ideal", 0.08))
    )
    (verdict,) = judge([claim], {"a": of(0.4 + gain), "b": of(0.4)})
    assert verdict.reason.endswith(f"the guide's {said}")
    assert verdict.word == ("supported" if gain > 0 else "not supported")


def test_an_expected_effect_needs_every_comparison_and_stays_open_without_numbers() -> None:
    two = (MemberComparison("a", "above", "b"), MemberComparison("a", "above", "c"))
    claim = Claim("x", "a beats b and c", two, expected=(("minimum", 0.03),))

    def said(**evidence: Evidence) -> str:
        return re.search(r"points (\w+)", judge([claim], evidence)[0].reason)[1]

    assert said(a=of(0.6), b=of(0.4), c=of(0.5)) == "reached"
    assert said(a=of(0.6), b=of(0.4), c=of(0.59)) == "excluded"
    assert said(a=of(0.6), b=of(0.4)) == "open"
    assert said(a=of(0.6, wobble=0.04), b=of(0.4), c=of(0.53)) == "open"
    assert said() == "open"


def tree(base: Path, shares: dict[str, float], seeds=SEEDS[:3]) -> Path:
    """A suite's folder; a log with the validations of a run with several teachers."""
    for name, share in shares.items():
        for seed in seeds:
            folder = run(base / name / f"seed_{seed}", share, seed, items=400, mode="cot")
            if name != "sft":
                last = {"step": 800, "eval_ce": 0.5, "eval_kv": 0.1, "eval_kv_mean_predictor": 0.4,
                        "eval_kv_unexplained": 0.25}  # fmt: skip
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(last) + "\n")
    entry = {name: {"title": name, "settings": [], "mode": "cot"} for name in shares}
    plan = {"suite": "phases", "config": "toy", "seeds": list(seeds), "sets": ["chains"], "members": entry}
    (base / "suite.json").write_text(json.dumps(plan | {"broken": {}}))
    return base


SHARES = {"sft": 0.3, "single_a": 0.31, "single_b": 0.4, "fixed": 0.6, "similarity": 0.6, "learnable": 0.6, "z": 0.3}


def test_a_folder_of_phases_is_analysed_by_its_own_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = analyze(capsys, "--output_base", tree(tmp_path / "phases", SHARES))
    said = words(found)
    assert (said["several"], said["fixed_sft"]) == ("supported", "supported")
    assert "supported" not in (said["router"], said["z_sft"])
    assert deciding(found, "several")["difference"] == pytest.approx(0.29, abs=0.06)
    assert [row["name"] for row in found["experiments"]] == list(SHARES)
    text = (tmp_path / "phases" / "EXPERIMENT_REPORT.txt").read_text()
    assert "the guide's minimum of 3 points reached, ideal of 8 points reached" in text
    assert "E1_baseline" not in text


def test_one_teacher_that_is_better_alone_refutes_the_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = analyze(capsys, "--output_base", tree(tmp_path / "phases", SHARES | {"single_b": 0.8}))
    assert words(found)["several"] == "not supported"
    claim = next(claim for claim in found["claims"] if claim["name"] == "several")
    assert "fixed against single_b: significantly the other way round" in claim["reason"]


def test_a_folder_without_experiments_says_which_suites_have_claims(tmp_path: Path, capsys) -> None:
    run(tmp_path / "mine" / "seed_42")
    assert "no experiment of a suite with claims (e1-e5, methods, phases, stages), only mine" in refused(
        capsys, "--output_base", tmp_path
    )


# ---- whole runs


@pytest.mark.long
def test_stages_run_one_after_the_other_and_end_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = ["fixed", "similarity", "learnable"]
    line = ["suite", "stages", "--config", "multi_teacher_embedded", "--seeds", "42", "--quick_test", "--jobs", "2"]
    assert main([*line, "--members", *names]) == 0
    shown = capsys.readouterr().out
    assert all(column in shown for column in ("val CE", "val KV", "KV / mean's", "accuracy"))
    for name, before in zip(names, ["", *names], strict=False):
        recipe = load_recipe(tmp_path / "outputs" / "stages_quick" / name / "seed_42" / "recipe.yaml")
        wanted = f"outputs/stages_quick/{before}/seed_42/best_checkpoint" if before else None
        assert recipe.training.start_from == wanted
    assert main([*line, "--members", *names]) == 0  # nothing left to do
