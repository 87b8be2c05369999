"""The model card: every line from a file of the run, and nothing where there is no file."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import hub
from kava.backbone.card import read_card
from kava.evaluation.run import evaluate
from kava.share.card import Form, interval, model_card
from kava.share.facts import student_facts

FORM = Form("ann/student")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with results on a whole set, of an ablation, and of answers drawn."""
    folder = tmp_path_factory.mktemp("runs") / "seed_1"
    checkpoint = hub.tiny_student(folder / "best_checkpoint")
    common = {"quiet": True, "max_new_tokens": 3}
    evaluate(checkpoint, "chains", **common)
    evaluate(checkpoint, "chains", ablate="swap", **common)
    evaluate(checkpoint, "chains", samples=2, temperature=1.0, **common)
    meta = {"command": ["kava", "train", "--config", "debug", "about.name=a b"], "trained_parameters": 1234, "device": "cpu",
            "git": "b230e117", "data": {"examples": 16, "sha256": "c0ffee"}, "versions": {"kava": "0.1.0"}}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def card_of(run, **options):
    return model_card(student_facts(run / "best_checkpoint"), FORM, **options)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_is_what_the_hub_reads(run):
    from huggingface_hub import ModelCard

    text = card_of(run, licence="apache-2.0")
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "kava"
    assert card.data.get("base_model") is None  # it was a shipped model or a folder
    results = yaml.safe_load((run / "results_chains.yaml").read_text())
    (entry,) = card.data.eval_results
    assert entry.metric_value == results["correct"] / results["total"]
    assert entry.dataset_name == "chains"
    assert str(card) == text


def test_every_score_is_that_of_its_file(run):
    text = card_of(run)
    for name in ("chains", "chains.samples2.temp1"):
        fields = yaml.safe_load((run / f"results_{name}.yaml").read_text())
        low, high = interval(fields["correct"], fields["total"])
        right = f"{fields['correct']}/{fields['total']}"
        shown = f"{100 * fields['accuracy']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | {right}"
        assert shown in text
        assert f"{fields['avg_forward_passes']:.2f} | `{fields['data_sha256'][:16]}`" in text
    swap = yaml.safe_load((run / "results_chains.ablate_swap.yaml").read_text())
    assert f"| chains | swap | {100 * swap['accuracy']:.1f} % | {swap['correct']}/{swap['total']} |" in text
    assert "kava train --config debug 'about.name=a b'" in text
    assert "`c0ffee`" in text
    assert "| trained parameters | 1234 |" in text


def test_without_files_nothing_is_made_up(run, tmp_path):
    shutil.copytree(run / "best_checkpoint", tmp_path / "best_checkpoint")
    text = card_of(tmp_path)
    assert "## Scores\n\nNot measured." in text
    assert "## Are the latents used?\n\nNot measured." in text
    assert "The licence of these weights was not stated" in text
    assert "license" not in front_matter(text)
    assert "model-index" not in front_matter(text)
    for absent in ("None", "The command:", "trained parameters", "device", "source revision", "examples |"):
        assert absent not in text


def test_results_of_another_checkpoint_are_left_out(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "results_chains.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"step": 77}))
    text = card_of(tmp_path / "run")
    assert "Left out, because they are results of another checkpoint: `results_chains.yaml`." in text
    assert "model-index" not in front_matter(text)


def test_other_seeds_of_the_recipe_give_a_spread(run, tmp_path):
    shutil.copytree(run, tmp_path / "seed_1")
    fields = yaml.safe_load((run / "results_chains.yaml").read_text())
    total = fields["total"]
    for seed, right in ((2, total), (3, 0)):
        (tmp_path / f"seed_{seed}").mkdir()
        other = fields | {"seed": seed, "correct": right, "accuracy": right / total}
        (tmp_path / f"seed_{seed}" / "results_chains.yaml").write_text(yaml.safe_dump(other))
    (tmp_path / "seed_4").mkdir()
    foreign = fields | {"seed": 4, "data_sha256": "of other items"}
    (tmp_path / "seed_4" / "results_chains.yaml").write_text(yaml.safe_dump(foreign))
    text = card_of(tmp_path / "seed_1")
    assert f"Over 3 seeds ({fields['seed']}, 2, 3) of the recipe, chains, latent: " in text


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilsons_interval(correct, total, low, high):
    assert interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_a_card_says_how_to_use_it(run):
    text = card_of(run)
    assert 'Student.from_pretrained("ann/student")' in text
    assert "without kava they do not answer" in text
    merged = model_card(student_facts(run / "best_checkpoint"), Form("ann/student", True, "ab" * 32))
    assert "AutoModelForCausalLM.from_pretrained(name)" in merged
    assert "ab" * 32 in merged
    assert front_matter(merged)["library_name"] == "transformers"
    assert read_card(run / "best_checkpoint").kava_version in text
