"""The two recipes of the guides on tiny models, three seeds: does the student move towards the teacher, and at what price?

Text with words drawn at random, so that its cross-entropy has a floor and one per cent of it means something. The student
is trained without a teacher first, as a real one is, then by the recipe at the recipe's own learning rates.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kava.config import Recipe, load_recipe
from kava.training.run import train

SEEDS = (1, 2, 3)
UPDATES = {"adaptive": 600, "explicit_hpc": 150}
WORDS = "red blue green small large old new quiet loud warm cold round flat heavy light soft".split()  # noqa: SIM905
THINGS = "box cup ball hat pen coin door lamp".split()  # noqa: SIM905
pytestmark = pytest.mark.long


def row(rng: random.Random, number: int) -> dict:
    count = rng.randrange(2, 9)
    thing = rng.choice(THINGS)
    steps = [f"a {rng.choice(WORDS)} {thing}", f"one {rng.choice(WORDS)} {rng.choice(THINGS)}"]
    return {"question": f"Row {number % 7}: {count} times {thing}?", "steps": steps, "answer": str(count)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    for name, size in (("train", 3000), ("validation", 200)):
        lines = [json.dumps(row(rng, i)) for i in range(size)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def settings(data: Path, updates: int) -> list[str]:
    return [
        "model.dtype=float32", "teacher.dtype=float32", f"dataset.name={data}", "dataset.config=null",
        "training.batch_size=32", "training.gradient_accumulation_steps=1", f"training.max_steps={updates}",
        f"logging.eval_steps={updates}", f"logging.save_steps={updates}", "logging.logging_steps=25",
        "logging.report_to=[]", "system.num_workers=0", "system.mixed_precision=no", "evaluation.batch_size=64",
    ]  # fmt: skip


def last(recipe: Recipe, folder: Path) -> dict[str, float]:
    """The last validation's numbers."""
    train(recipe, folder, quiet=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "eval_ce" in line][-1]


@pytest.fixture(scope="module")
def student(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model of transformers that has read the text before."""
    folder = tmp_path_factory.mktemp("student") / "run"
    alone = ["model.name=kava:blank", "loss.alpha2_kv=0", "training.learning_rate=2e-3"]
    start = [one for one in settings(data, 500) if not one.startswith("teacher.")]
    last(load_recipe("adaptive", [*start, *alone]), folder)
    return folder / "final_model" / "student"


PAIR = {
    "adaptive": ["teacher.name=kava:embedded", "projector.learning_rate=1e-2"],
    "explicit_hpc": ["explicit.target_len=8", "training.gradient_checkpointing=false", "dataset.subset_size=null"],
}


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_student_follows_its_teacher_and_keeps_its_cross_entropy(
    name: str, seed: int, data: Path, student: Path, tmp_path: Path
) -> None:
    base = [*settings(data, UPDATES[name]), *PAIR[name], f"model.name={student}", f"system.seed={seed}"]
    taught = last(load_recipe(name, base), tmp_path / "taught")
    shuffled = last(load_recipe(name, [*base, "rkv.shuffle=time"]), tmp_path / "shuffled")
    of_the_term = ("teacher.", "explicit.target_len", "projector.")
    alone = [one for one in base if not one.startswith(of_the_term)] + ["loss.alpha2_kv=0"]
    codi = ["loss.alpha1_codi=0"] if name == "explicit_hpc" else []
    without = last(load_recipe(name, [*alone, *codi]), tmp_path / "without")
    shown = ("cossim", "cossim_centred", "cossim_mean_predictor", "target_variation")
    for what, found in (("taught", taught), ("shuffled", shuffled), ("without", without)):
        print(name, seed, what, f"ce {found['eval_ce']:.4f}", {k: round(found.get(f"eval_{k}", 0), 4) for k in shown})
    assert taught["eval_cossim"] > 0.90
    assert taught["eval_cossim_centred"] > max(0.0, shuffled["eval_cossim_centred"])  # the mean itself scores 0
    assert taught["eval_cossim"] > taught["eval_cossim_mean_predictor"]
    assert taught["eval_ce"] < 1.01 * without["eval_ce"]


def test_an_unguarded_projector_collapses_and_the_raw_cosine_calls_it_progress(data: Path, tmp_path: Path) -> None:
    """Targets that cannot be met (shuffled in time), no cross-entropy: the projector can please by saying one thing only."""
    base = [
        *settings(data, 300), "model.name=kava:blank", "teacher.name=kava:embedded", "loss.student_ce=0", "loss.alpha2_kv=1",
        "loss.kv_loss_type=mse", "loss.layerwise_std=false", "rkv.shuffle=time", "training.learning_rate=2e-3",
        "training.lr_scheduler=constant_with_warmup", "projector.learning_rate=1e-2",
    ]  # fmt: skip
    bare = last(load_recipe("adaptive", [*base, "projector.guard=none"]), tmp_path / "bare")
    guarded = last(load_recipe("adaptive", base), tmp_path / "guarded")
    for found in (bare, guarded):
        print({name: round(value, 4) for name, value in found.items() if name.startswith("eval_")})
    assert bare["eval_target_variation"] < 0.1
    assert bare["eval_cossim"] > 0.8
    assert abs(bare["eval_cossim_centred"]) < 0.2
    assert guarded["eval_target_variation"] > 0.5
