"""kava evaluate --ablate, --num_tokens, --num_iterations, --cue: a student with other latents, M, T or cue."""

from __future__ import annotations

import json
import math
from typing import get_args, get_type_hints

import pytest
import torch
import yaml

import hub
from kava.cli.evaluate import evaluate as verb
from kava.cli.main import main
from kava.config import load_recipe
from kava.data.example import Example
from kava.errors import ConfigError
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.overrides import EvalOverrides, overridden
from kava.evaluation.result_files import files_for
from kava.evaluation.run import evaluate_set
from kava.evaluation.score import predict
from kava.infer.ablate import ABLATIONS
from kava.infer.student import Student

EXAMPLES = [Example(f"t/{i}", f"{'3+' * (i % 4)}{i}*2{'-1' * (i % 3)}?", ("1=1",), str(i)) for i in range(11)]
QUESTIONS = [example.question for example in EXAMPLES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def student(folder):
    return Student.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain(student):
    return student.answer(QUESTIONS)


def texts(predictions):
    return [(item["text"], item["forward_passes"], item["executed_calls"]) for item in predictions]


# -- the kinds -------------------------------------------------------------------------------------------------------


def small():
    latents = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 9.0]], [[0.0, 1.0], [2.0, 2.0]]])
    return latents, ["a", "b", "c"]


def test_zero_mean_and_swap_by_hand():
    latents, ids = small()
    assert ABLATIONS["zero"](latents, ids).tolist() == [[[0, 0], [0, 0]]] * 3
    assert ABLATIONS["mean"](latents, ids).tolist() == [[[2, 3], [4, 5]]] * 3
    assert ABLATIONS["swap"](latents, ids).tolist() == [latents[1].tolist(), latents[2].tolist(), latents[0].tolist()]


def test_noise_has_the_sets_mean_and_spread_in_each_slot_and_dimension():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([[0.1, 5.0], [1.0, 30.0]])
    latents = torch.randn(4000, 2, 2, generator=generator) * scale + torch.tensor([[7.0, -3.0], [0.0, 100.0]])
    noise = ABLATIONS["noise"](latents, [f"x/{i}" for i in range(4000)])
    for slot in range(2):
        for dimension in range(2):
            wanted, found = latents[:, slot, dimension].tolist(), noise[:, slot, dimension].tolist()
            mean = [sum(values) / 4000 for values in (wanted, found)]
            spread = [
                math.sqrt(sum((v - m) ** 2 for v in vs) / 3999) for vs, m in zip((wanted, found), mean, strict=True)
            ]
            assert mean[1] == pytest.approx(mean[0], abs=0.1 * spread[0])
            assert spread[1] == pytest.approx(spread[0], rel=0.1)
    assert noise[0, 0, 0] != noise[1, 0, 0]


def test_noise_is_drawn_from_the_items_id_alone():
    latents, ids = small()
    noise = ABLATIONS["noise"](latents, ids)
    turned = ABLATIONS["noise"](latents.flip(0), ids[::-1]).flip(0)
    assert torch.allclose(noise, turned, atol=1e-6)
    assert torch.equal(noise, ABLATIONS["noise"](latents, ids))


def test_every_kind_can_be_asked_for():
    kinds, _ = get_args(get_type_hints(verb)["ablate"])
    assert set(get_args(kinds)) == set(ABLATIONS)


# -- in a student ----------------------------------------------------------------------------------------------------


def test_the_students_own_latents_change_nothing(student, plain):
    for size in (1, 4, 64):
        assert student.answer(QUESTIONS, batch_size=4, latents=student.think(QUESTIONS, size)) == plain


def test_each_question_gets_the_latents_of_its_row(student):
    latents = student.think(QUESTIONS)
    whole = student.answer(QUESTIONS, latents=latents.roll(-1, 0))
    alone = [student.answer([q], latents=latents[(i + 1) % 11][None])[0] for i, q in enumerate(QUESTIONS)]
    assert whole == alone


@pytest.mark.parametrize("kind", ABLATIONS)
def test_batches_change_nothing(student, plain, kind):
    first, *others = (predict(student, EXAMPLES, batch_size=size, max_new_tokens=5, ablate=kind) for size in (1, 7, 64))
    assert all(found == first for found in others)
    assert [item["text"] for item in first] != [answer.text for answer in plain]  # random weights: any change is seen


def test_the_set_is_the_whole_set_not_the_batch(student):
    """swap and mean, made by hand from the latents of one question after the other."""
    latents = torch.cat([student.think([question]) for question in QUESTIONS])
    for kind, other in (("swap", latents.roll(-1, 0)), ("mean", latents.mean(0).expand_as(latents))):
        found = predict(student, EXAMPLES, batch_size=4, ablate=kind)
        assert [item["text"] for item in found] == [a.text for a in student.answer(QUESTIONS, latents=other)]


def test_a_student_without_thought_has_nothing_to_replace(student):
    with pytest.raises(ValueError, match="no latents to replace"):
        student.answer(QUESTIONS[:1], "direct", latents=student.think(QUESTIONS[:1]))
    with EvalOverrides(num_iterations=0).applied(student), pytest.raises(ConfigError, match="thinks no latents"):
        student.think(QUESTIONS)


# -- another M, T, cue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        (EvalOverrides(num_iterations=4), ["latent.num_iterations=4"]),
        (EvalOverrides(num_iterations=1), ["latent.num_iterations=1"]),
        (EvalOverrides(num_tokens=6), ["latent.num_tokens=6"]),
        (EvalOverrides(num_tokens=2, num_iterations=3), ["latent.num_tokens=2", "latent.num_iterations=3"]),
        (EvalOverrides(cue="generated"), ["evaluation.cue=generated"]),
    ],
)
def test_a_changed_student_answers_as_one_made_so(student, plain, tmp_path, changes, settings):
    other = Student.from_pretrained(hub.tiny_student(tmp_path / "s", settings))  # same weights, same seed
    with changes.applied(student):
        found = predict(student, EXAMPLES)
    assert found == predict(other, EXAMPLES)
    assert texts(found) != [(a.text, a.forward_passes, a.executed) for a in plain]
    assert student.answer(QUESTIONS) == plain  # and is itself again


def test_no_latents_is_mode_direct_and_no_rounds_are_pause_tokens(student):
    with EvalOverrides(num_tokens=0).applied(student):
        assert [a.text for a in student.answer(QUESTIONS)] == [a.text for a in student.answer(QUESTIONS, "direct")]
    with EvalOverrides(num_iterations=0).applied(student):
        assert {a.forward_passes - a.num_tokens for a in student.answer(QUESTIONS)} == {1}


def test_files_and_fields_say_what_was_changed(student, folder, tmp_path):
    recipe, asked = student.recipe, EvalSet("s", EXAMPLES[:3], 3, ".limit3")
    changes = EvalOverrides("noise", 12, 1, "generated").checked(recipe, "latent")
    files = files_for(folder, asked, "latent", tmp_path, changes)
    assert files.results.name == "results_s.ablate_noise.limit3.M12.T1.cue_generated.yaml"
    assert files.predictions.name == "predictions_s.ablate_noise.limit3.M12.T1.cue_generated.jsonl"
    results = evaluate_set(student, asked, files, folder, max_new_tokens=3, overrides=changes)
    wanted = {"ablate": "noise", "num_tokens": 12, "num_iterations": 1, "cue": "generated"}
    assert {name: yaml.safe_load(files.results.read_text())[name] for name in wanted} == wanted
    assert results["avg_forward_passes"] == 2 + results["avg_generated_tokens"]


def test_what_the_recipe_says_anyway_is_no_change(student):
    recipe = student.recipe
    same = EvalOverrides(None, recipe.latent.num_tokens, recipe.latent.num_iterations, "given").checked(
        recipe, "latent"
    )
    assert (same, same.part, same.fields) == (EvalOverrides(), "", {})
    assert EvalOverrides(cue="generated").checked(recipe, "cot") == EvalOverrides()
    assert overridden(recipe, same) == recipe


M0, T0, SEQUENTIAL = "latent.num_tokens=0", "latent.num_iterations=0", "latent.method=sequential"
NO_KV = "loss.alpha2_kv=0"


@pytest.mark.parametrize(
    ("settings", "mode", "asked", "said"),
    [
        ([], "cot", {"ablate": "zero"}, "--ablate has no effect in mode cot"),
        ([], "direct", {"ablate": "mean"}, "--ablate has no effect in mode direct"),
        ([], "cot", {"num_tokens": 3}, "--num_tokens has no effect in mode cot"),
        ([], "direct", {"num_iterations": 3}, "--num_iterations has no effect in mode direct"),
        ([], "cot", {"cue": "given"}, "--cue given has no effect"),
        ([], "latent", {"ablate": "swap", "num_iterations": 0}, "pause tokens"),
        ([], "latent", {"num_tokens": 0, "num_iterations": 5}, "no latents"),
        ([M0, NO_KV], "latent", {"ablate": "zero"}, "no latents"),
        ([M0, NO_KV], "latent", {"num_tokens": 3}, "trained without latents"),
        ([T0, NO_KV], "latent", {"ablate": "zero"}, "pause tokens"),
        ([T0, NO_KV], "latent", {"num_iterations": 2}, "trained with pause tokens"),
        ([SEQUENTIAL], "latent", {"num_iterations": 5}, "one latent after the other"),
    ],
)
def test_a_change_without_effect_is_refused(settings, mode, asked, said):
    recipe = load_recipe("debug", ["lora.enabled=false", *settings])
    with pytest.raises(ConfigError, match=said):
        EvalOverrides(**asked).checked(recipe, mode)


def test_through_the_command(folder, tmp_path, capsys):
    words = [
        "evaluate",
        "--checkpoint",
        str(folder),
        "--max_new_tokens",
        "3",
        "--quiet",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--ablate", "swap", "--num-tokens", "5"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["ablate"] == "swap"
    assert (tmp_path / "o" / "results_chains.ablate_swap.M5.yaml").is_file()
    for flags, said in (
        (["--ablate", "swap", "--limit", "1"], "needs two items"),
        (["--ablate", "zero", "--losses"], "--losses has no effect"),
        (["--ablate", "half"], "ablate"),
        (["--num_tokens", "-1"], "num_tokens"),
    ):
        assert main([*words[:-1], str(tmp_path / "none"), *flags]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) <= 2
    assert not (tmp_path / "none").exists()
