"""Suites as data, and the runner: what is finished is kept, what breaks stops nothing, what is killed goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hub
from kava.cli.list_flags import spread
from kava.cli.main import main
from kava.config import differing, list_recipes, load_recipe, save_recipe
from kava.errors import ConfigError
from kava.lab.page.sections.settings import suite_command
from kava.lab.plan import SUITES, chosen, plan_run
from kava.lab.run_local import Job, last_line, last_step, run_jobs
from kava.lab.suites.e1_e5 import MEMBERS

PAPER = [name for name in list_recipes() if name not in ("debug",)]
FREE = ("loss.", "rkv.", "latent.")  # all that members of E1 to E5 may touch


# ---- suites as data


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
@pytest.mark.parametrize("config", PAPER)
def test_every_member_is_a_recipe_of_its_own(suite, config: str) -> None:
    """Settings without effect are refused by load_recipe, so that each member really differs from the recipe."""
    base = load_recipe(config)
    members = suite.members(base)
    assert len({member.name for member in members}) == len(members)
    for member in members:
        recipe = load_recipe(config, member.settings)
        own = {"max_steps": recipe.training.max_steps} if "training.max_steps" in suite.derived else {}
        assert recipe.training == base.training.model_copy(update=own)
        assert recipe.dataset.generator == base.dataset.generator
    recipes = [load_recipe(config, member.settings).to_dict() for member in suite.members(base)]
    if config == "llama1b_aug" and suite.name == "ablations":
        assert all(one != other for i, one in enumerate(recipes) for other in recipes[:i])


def test_e1_to_e5_change_the_treatment_of_keys_and_values_only() -> None:
    base = load_recipe("llama1b_aug")
    changed = {m.name: differing(base, load_recipe("llama1b_aug", m.settings)) for m in MEMBERS}
    assert [line.split()[0] for line in changed["E1_baseline"]] == ["loss.alpha2_kv"]
    assert changed["E4_rkv"] == []
    assert [line.split()[0] for line in changed["E5_shuffled"]] == ["rkv.shuffle"]
    for name in ("E2_full_kv", "E3_right_crop", "random", "uniform"):
        assert [line.split()[0] for line in changed[name]] == ["rkv.method"]
    assert all(line.startswith(FREE) for lines in changed.values() for line in lines)


def test_the_explicit_line_has_members_and_folders_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    base = load_recipe("explicit_embedded")
    for name, folder in (("e1-e5", "explicit"), ("ablations", "explicit_ablations")):
        suite = SUITES[name]
        assert suite.line(base) == folder != suite.line(load_recipe("embedded"))
        assert {member.mode for member in suite.members(base)} == {"cot"}
    names = [member.name for member in SUITES["e1-e5"].members(base)]
    assert names == [member.name for member in MEMBERS if member.name not in ("pause", "no_cot", "full_cot")]


def test_settings_of_all_members_may_be_switched_off_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a recipe's may; on one command line `explicit.target_len=5 loss.alpha2_kv=0` is an error."""
    words = [
        "suite",
        "e1-e5",
        "--config",
        "explicit_embedded",
        "--members",
        "E1_baseline",
        "--skip_train",
        "--skip_eval",
    ]
    assert main([*words, "--output_dir", str(tmp_path), "explicit.target_len=5", "--quiet"]) == 0
    assert json.loads((tmp_path / "explicit" / "suite.json").read_text(encoding="utf-8"))["broken"] == {}
    assert load_recipe(tmp_path / "explicit" / "e1-e5.yaml", ["loss.alpha2_kv=0"]).explicit.target_len == 5
    with pytest.raises(ConfigError, match="target_len has no effect"):
        load_recipe("explicit_embedded", ["explicit.target_len=5", "loss.alpha2_kv=0"])


def test_a_setting_that_a_member_does_not_have_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["suite", "e1-e5", "--config", "debug", "--skip_train", "--skip_eval", "--seeds", "1", "--quiet"]
    words += ["--output_dir", str(tmp_path), "--members", "pause", "E1_baseline", "E4_rkv"]
    assert main([*words, "latent.num_iterations=3", "rkv.method=crop", "training.max_steps=5"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: latent.num_iterations=3 has no effect on pause",
        "note: rkv.method=crop has no effect on E1_baseline, E4_rkv, pause",
    ]
    suite = json.loads((tmp_path / "latent" / "suite.json").read_text(encoding="utf-8"))
    assert suite_command(suite) == (
        "kava suite e1-e5 --config debug --seeds 1 --members E1_baseline E4_rkv pause "
        f"--output_dir {tmp_path} latent.num_iterations=3 rkv.method=crop training.max_steps=5"
    )


def test_members_are_chosen_by_name() -> None:
    assert [m.name for m in chosen(MEMBERS, ["steps", "E1_baseline"])] == ["E1_baseline", "steps"]
    assert chosen(MEMBERS, []) == MEMBERS
    with pytest.raises(ConfigError, match="unknown member 'E4'"):
        chosen(MEMBERS, ["E4"])


def test_a_finished_run_is_not_trained_again_and_another_one_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "seed_7"
    folder.mkdir()

    def planned(*settings: str) -> tuple[str, ...]:
        return plan_run("x", "debug", folder, 7, settings, []).train

    assert planned()[:3] == ("train", "--config", "debug")
    save_recipe(load_recipe("debug", ["system.seed=7"]), folder / "recipe.yaml")
    (folder / "meta.json").write_text(json.dumps({"finished": False}))
    assert planned()
    (folder / "meta.json").write_text(json.dumps({"finished": True}))
    assert planned() == ()
    assert planned("logging.report_to=[]") == ()
    assert planned("loss.alpha2_kv=3")  # kava train will refuse it, by name
    assert "--quick_test" in plan_run("x", "debug", folder, 7, (), [], ["--quick_test"]).train


# ---- the runner


def test_a_job_that_breaks_stops_no_other_and_says_why(tmp_path: Path) -> None:
    good = Job("good", tmp_path / "good", ("config", "--list", "--quiet"), (("config", "--get", "debug"),))
    bad = Job("bad", tmp_path / "bad", ("config", "--get", "nowhere"), (("config", "--list"),))
    broken = run_jobs([bad, good], parallel=2, quiet=True)
    assert broken == {"bad": "config ended with code 2: error: unknown recipe 'nowhere'"}
    assert "llama1b_aug" in good.output.read_text()
    assert "modulus" in good.output.read_text()  # its second command ran as well
    assert "llama1b_aug" not in bad.output.read_text().replace("known: ", "known: ").split("hint")[0]


def test_parts_of_a_job_can_be_left_out(tmp_path: Path) -> None:
    whole = Job("x", tmp_path / "x", ("train",), (("evaluate",),), 5)
    assert whole.without(train=True).commands() == [("evaluate",)]
    assert whole.without(evaluate=True).commands() == [("train",)]
    assert whole.without(train=True).updates == 0
    assert run_jobs([whole.without(train=True, evaluate=True)], quiet=True) == {}


def test_several_jobs_get_a_device_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kava.lab import run_local as runner

    seen = []

    class Process:
        def __init__(self, command, env, **_):
            seen.append((command[-1], env["CUDA_VISIBLE_DEVICES"]))

        def poll(self):
            return 0

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    run_jobs([Job(name, tmp_path / name, (name,)) for name in "abc"], parallel=2, quiet=True)
    assert seen == [("a", "2"), ("b", "5"), ("c", "2")]


def test_progress_and_last_words_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 10, "loss": 1}\n{"step": 20, "loss": 1}\n{"step": 3')
    assert last_step(tmp_path) == 20
    assert last_step(tmp_path / "nowhere") == 0
    (tmp_path / "x.out").write_text("one\nerror: it broke\n  hint: try this\n\n")
    assert last_line(tmp_path / "x.out") == "error: it broke"
    assert last_line(tmp_path / "y.out") == "(no output)"


def test_a_setting_ends_a_list_of_values() -> None:
    words = ["--seeds", "1", "2", "loss.alpha2_kv=3", "x"]
    assert spread(words, ["--seeds"], settings=True) == ["--seeds=1", "--seeds=2", "loss.alpha2_kv=3", "x"]
    assert spread(words, ["--seeds"])[2] == "--seeds=loss.alpha2_kv=3"


# ---- the verbs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suite", "e6"], "unknown suite 'e6'"),
        (["suite", "e1-e5", "--members", "E4"], "unknown member 'E4'"),
        (["suite", "e1-e5", "--config", "lama1b_aug"], "did you mean 'llama1b_aug'"),
        (["suite", "e1-e5", "--seeds", "42", "los.alpha2_kv=1"], "unknown key"),
        (["suite", "e1-e5", "--seeds", "x"], "should be a valid integer"),
        (["seeds", "--config", "debug", "system.seed=3"], "system.seed is set by --seeds"),
        (["seeds"], "missing option '--config'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said.lower() in error.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_suite_of_another_recipe_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latent").mkdir()
    (tmp_path / "latent" / "suite.json").write_text(json.dumps({"suite": "e1-e5", "config": "llama1b_aug"}))
    assert main(["suite", "e1-e5", "--config", "debug", "--output_dir", str(tmp_path)]) == 2
    assert "holds config 'llama1b_aug', not 'debug'" in capsys.readouterr().err


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "kava", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


LONGER = ("training.max_steps=60", "logging.eval_steps=20", "logging.save_steps=20", "logging.report_to=[]")


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_seeds_killed_in_the_middle_go_on_and_repeat_nothing(tmp_path: Path, how: signal.Signals) -> None:
    words = ("seeds", "--config", "debug", "--seeds", "1", "2", "--output_dir", str(tmp_path / "a"), *LONGER)
    process = start(*words)
    wait_for(tmp_path / "a" / "seed_2" / "checkpoint-step20", process)
    process.send_signal(how)
    process.communicate()
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "seed_1").rglob("*") if p.is_file()}
    assert not (tmp_path / "a" / "aggregated_results.json").exists()

    assert subprocess.run([sys.executable, "-m", "kava", *words], check=False).returncode == 0
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "seed_1").rglob("*") if p.is_file()}
    assert after == first  # trained and evaluated once
    log = (tmp_path / "a" / "seed_2" / "train.log").read_text()
    assert "continuing from" in log

    fresh = ("seeds", "--config", "debug", "--seeds", "1", "2", "--output_dir", str(tmp_path / "b"), *LONGER)
    assert subprocess.run([sys.executable, "-m", "kava", *fresh], check=False).returncode == 0
    both = [json.loads((tmp_path / x / "aggregated_results.json").read_text())["debug"]["datasets"] for x in "ab"]
    assert both[0] == both[1]


@pytest.mark.long
def test_a_suite_with_a_broken_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "latent" / "E3_right_crop" / "seed_1"
    broken.mkdir(parents=True)
    save_recipe(load_recipe("debug", ["training.learning_rate=0.5"]), broken / "recipe.yaml")  # another run's folder
    words = ["suite", "e1-e5", "--config", "debug", "--seeds", "1", "--output_dir", str(tmp_path), "--jobs", "2"]
    assert main([*words, "--members", "E1_baseline", "E3_right_crop", "full_cot", "--quiet"]) == 1
    out, err = capsys.readouterr()
    rows = {row["member"]: row for row in json.loads(out)}
    assert rows["E1_baseline"]["status"] == rows["full_cot"]["status"] == "finished"
    assert rows["E3_right_crop"]["status"] == "broken"
    assert "accuracy" not in rows["E3_right_crop"]
    assert "broken: E3_right_crop/seed_1: train ended with code 2" in err
    assert (tmp_path / "latent" / "full_cot" / "seed_1" / "results_chains.cot.yaml").is_file()
    shutil.rmtree(broken)
    assert main([*words, "--members", "E3_right_crop", "--quiet"]) == 0
    suite = json.loads((tmp_path / "latent" / "suite.json").read_text())
    assert suite["broken"] == {}
    assert set(suite["members"]) == {"E1_baseline", "E3_right_crop", "full_cot"}


@pytest.mark.long
def test_seeds_of_a_hub_recipe_offline(tmp_path: Path) -> None:
    """The guide's line on the tiny models under their real names: training, three sets, aggregation, tables."""
    root = hub.build(tmp_path)
    env = {**os.environ, **hub.environment(root)}
    words = [
        "seeds", "--config", "llama1b_aug", "--seeds", "42", "123", "--quick_test", "evaluation.max_new_tokens=4",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "kava", *words], cwd=root, env=env, check=False)
    assert done.returncode == 0
    tree = root / "outputs" / "llama1b_aug_multi_seed_quick"
    found = json.loads((tree / "aggregated_results.json").read_text())["llama1b_aug"]
    assert {name: entry["total"] for name, entry in found["datasets"].items()} == dict.fromkeys(
        ("gsm8k", "gsm8k-hard", "svamp"), hub.TEST_ROWS
    )
    for seed in (42, 123):
        assert (tree / f"seed_{seed}" / "best_checkpoint" / "kava.json").is_file()
