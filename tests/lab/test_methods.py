"""The suite `methods`: what each member sets, what all share, and the claims about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_analyze import analyze, refused, run, tree, words

import zoo
import zoo_tokenizers as tokenizers
from compare import UNEVEN, objective
from kava.cli.main import main
from kava.config import Recipe, differing, load_recipe
from kava.data.encode import Encoder
from kava.data.example import Example
from kava.lab.analysis.claims import CLAIMS, METHODS, claims_of
from kava.lab.plan import SUITES, RunSet, plan_suite
from kava.lab.suites.methods import stages
from kava.lab.suites.passes import passes_per_update

OWN = {
    "no_cot": {"latent.num_tokens": 0, "loss.alpha2_kv": 0, "loss.alpha1_codi": 0, "loss.teacher_ce": 0},
    "pause": {"latent.num_iterations": 0, "loss.alpha2_kv": 0, "loss.alpha1_codi": 0, "loss.teacher_ce": 0},
    "short_cot": {"loss.student_ce": 0, "loss.alpha2_kv": 0, "loss.alpha1_codi": 0, "dataset.step_text": "results"},
    "full_cot": {"loss.student_ce": 0, "loss.alpha2_kv": 0, "loss.alpha1_codi": 0, "dataset.drop_last_step": False},
    "codi": {"latent.method": "sequential", "loss.alpha2_kv": 0},
    "sim_cot": {"latent.method": "sequential", "loss.alpha2_kv": 0, "loss.step_decoder": 1},
    "coconut": {
        "latent.method": "sequential",
        "loss.alpha2_kv": 0,
        "loss.alpha1_codi": 0,
        "loss.teacher_ce": 0,
        "latent.stage_share": 0.12,
        "latent.stage_latents": 8,
        "loss.use_projection": False,
        "dataset.drop_last_step": False,
    },
    "pccot": {"loss.alpha2_kv": 0},
    "kava": {},
    "kava_steps": {"rkv.method": "steps"},
}


def recipes(config: str) -> dict[str, Recipe]:
    return {one.name: load_recipe(config, one.settings) for one in SUITES["methods"].members(load_recipe(config))}


def value(recipe: Recipe, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)


def test_a_method_sets_what_it_is_and_nothing_else() -> None:
    base, members = load_recipe("llama1b_aug"), recipes("llama1b_aug")
    assert set(members) == set(METHODS) == set(OWN)
    for name, recipe in members.items():
        assert {line.split()[0] for line in differing(base, recipe)} == set(OWN[name]), name
        assert {key: value(recipe, key) for key in OWN[name]} == OWN[name]
        assert (recipe.training, recipe.system, recipe.model) == (base.training, base.system, base.model)


def test_the_term_of_codi_has_one_weight_where_a_recipe_has_none() -> None:
    members = recipes("embedded")
    assert load_recipe("embedded").loss.alpha1_codi == 0
    assert {members[name].loss.alpha1_codi for name in ("codi", "pccot", "kava", "kava_steps")} == {1}
    assert {members[name].loss.alpha2_kv for name in ("kava", "kava_steps")} == {5}


@pytest.mark.parametrize("config", ["explicit_embedded", "multi_teacher_embedded"])
def test_recipes_with_separate_teachers_have_no_methods(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "methods", "--config", config, "--list"]) == 2
    assert "suite methods has no members for recipe" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["codi", "pause", "no_cot", "full_cot"])
def test_a_setting_that_a_method_does_not_have_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (member,) = [one for one in SUITES["methods"].members(load_recipe("debug")) if one.name == name]
    words_of = ["train", "--config", "debug", "--output_dir", str(tmp_path / "x"), *member.settings, "rkv.lambda=0.5"]
    assert main(words_of) == 2
    assert "rkv.lambda has no effect" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_all_start_alike_and_read_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    runs = RunSet(load_recipe("debug"), "debug", (), (1,))
    plan = plan_suite(SUITES["methods"], runs, [], tmp_path)
    assert plan.root == tmp_path / "methods"
    assert not plan.refused
    for job in plan.jobs:
        assert job.updates == 4
        assert job.train[5:7] == ("--seed", "1")


@pytest.mark.parametrize(("latents", "share"), [(24, 8), (3, 1), (4, 2), (5, 5)])
def test_coconuts_stages_fit_any_number_of_latents(latents: int, share: int) -> None:
    assert stages(latents)[0] == f"latent.stage_latents={share}"


# ---- a chain of thought of results


def test_a_chain_of_results_has_the_results_that_steps_keeps() -> None:
    example = Example("x", "Why?", ("<<3*8=24>>", "no result", "<<24*3=72>>", "<<72+1=73>>"), "73")
    tokenizer = tokenizers.byte_level()
    whole, short = Encoder(tokenizer)(example), Encoder(tokenizer, step_text="results")(example)
    kept = [token for token, flag in zip(whole.cot, whole.result, strict=True) if flag]
    assert tokenizer.decode(short.cot) == "24 72"
    assert tokenizer.decode(kept) == "2472"
    assert [token for token, flag in zip(short.cot, short.result, strict=True) if flag] == kept
    sentences = Example("x", "Why?", ("She has 3 cats.", "Then 9."), "9")
    nl = Encoder(tokenizer, False, "natural_language", step_text="results")(sentences)
    assert tokenizer.decode(nl.cot) == "3 9"


# ---- claims


def test_claims_about_methods_take_the_place_of_the_guides() -> None:
    names = {claim.name for claim in claims_of(METHODS)}
    assert names.isdisjoint(claim.name for claim in CLAIMS)
    assert all(set(claim.members) <= set(METHODS) for claim in claims_of(METHODS))
    assert claims_of(("pause", "no_cot", "full_cot")) == CLAIMS
    both = [claim.name for claim in claims_of(("E1_baseline", "E4_rkv", "kava", "pccot"))]
    assert len(set(both)) == len(both) == len(CLAIMS) + len(names)


def test_a_folder_of_methods_is_analysed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tree(tmp_path / "methods", {"pccot": 0.3, "kava": 0.31, "kava_steps": 0.7, "codi": 0.3})
    tree(base, {"full_cot": 0.9, "short_cot": 0.8}, mode="cot")
    document = analyze(capsys, "--output_base", base)
    verdicts = words(document)
    assert verdicts["kv_steps"] == verdicts["targets"] == "supported"
    assert verdicts["kv_rkv"] != "supported"
    assert verdicts["against_text"] != "supported"
    assert "distilled" not in verdicts  # nothing has been run for it
    modes = {row["name"]: row["mode"] for row in document["experiments"]}
    assert modes == {"pccot": "latent", "kava": "latent", "kava_steps": "latent", "codi": "latent"} | dict.fromkeys(
        ("full_cot", "short_cot"), "cot"
    )


# ---- equal forward passes, and budgets that are not equal


def test_members_of_equal_passes_cost_what_the_recipe_costs() -> None:
    """embedded: M 3, T 2, 800 updates of 3 passes each."""
    base = load_recipe("embedded")
    updates = {
        one.name: load_recipe("embedded", one.settings).training.max_steps
        for one in SUITES["methods-passes"].members(base)
    }
    assert updates == {
        "no_cot": 2400, "pause": 2400, "short_cot": 2400, "full_cot": 2400, "codi": 600, "sim_cot": 480,
        "coconut": round(2400 / 3.28), "pccot": 800,
        "kava": 800, "kava_steps": 800,
    }  # fmt: skip
    for name, recipe in recipes("embedded").items():
        cost = passes_per_update(recipe.to_dict())
        assert cost is not None
        assert updates[name] * cost == pytest.approx(2400, abs=cost / 2)
    assert passes_per_update({}) is None
    assert SUITES["methods-passes"].members(load_recipe("llama1b_aug")) == ()  # it counts epochs


@pytest.mark.parametrize("method", ["jacobi", "sequential"])
@pytest.mark.parametrize("latents", [(0, 3), (4, 0), (4, 1), (4, 3)], ids="M{0[0]}-T{0[1]}".format)
def test_passes_of_an_update_are_those_that_are_run(method: str, latents: tuple[int, int]) -> None:
    model = zoo.latent_model("llama-gqa", num_tokens=latents[0], num_iterations=latents[1], method=method)
    kind, calls = objective(model, alpha2_kv=float(latents[0] > 0)), []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    kind(zoo.batch(UNEVEN))
    recipe = {"loss": kind.loss.model_dump(), "latent": model.latent.model_dump()}
    assert passes_per_update(recipe) == len(calls)


def test_unequal_budgets_are_refused_unless_asked_and_then_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"loss": {"student_ce": 1}, "latent": {"num_tokens": 3, "num_iterations": 2, "method": "jacobi"}}
    base = tree(tmp_path / "methods_passes", {"pccot": 0.3, "kava": 0.6}, recipe=whole)
    one_by_one = whole | {"latent": whole["latent"] | {"method": "sequential"}}
    tree(base, {"codi": 0.3}, recipe=one_by_one, meta={"steps": 600})
    error = refused(capsys, "--output_base", base)
    assert "unequal budget" in error
    assert "has updates 600" in error
    assert "--unequal_budget" in error
    assert not (base / "EXPERIMENT_REPORT.txt").exists()
    document = analyze(capsys, "--output_base", base, "--unequal_budget")
    assert {name: tuple(facts.values()) for name, facts in document["unequal"].items()} == {
        "codi": (600, 64, 2400), "pccot": (800, 64, 2400), "kava": (800, 64, 2400)
    }  # fmt: skip
    assert document["budget"]["updates"] is None
    report = (base / "EXPERIMENT_REPORT.txt").read_text()
    assert "AN UNEQUAL BUDGET" in report.split("VERDICTS")[0]
    assert "codi 600 (2400)" in " ".join(report.split())
    run(base / "kava" / "seed_42", 0.6, 42, recipe=whole, meta={"steps": 400})
    assert "unequal budget" in refused(capsys, "--output_base", base, "--unequal_budget", "--overwrite")


@pytest.mark.long
def test_a_debug_run_of_methods_is_trained_analysed_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = ("short_cot", "sim_cot", "coconut")  # what no other suite has
    words_of = ["suite", "methods", "--config", "debug", "--seeds", "1", "--members", *ran, "--quiet"]
    assert main([*words_of, "--output_dir", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["member"] for row in rows if row["accuracy"] is not None} == set(ran)
    root = tmp_path / "methods"
    document = analyze(capsys, "--output_base", root)
    assert document["budget"]["updates"] == 4
    assert {row["status"] for row in document["experiments"]} == {"finished"}
    assert main(["report", str(root), "--output", str(tmp_path / "report.html"), "--quiet"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ran)
