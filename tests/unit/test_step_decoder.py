"""loss.step_decoder: which tokens belong to which step, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zoo_tokenizers as tokenizers
from kava.cli.main import main
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoder
from kava.data.example import Example
from kava.data.spans import firsts
from kava.errors import ConfigError

STEPS = ("<<3*8=24>>", "<<24*3=72>>", "<<72+1=73>>")


@pytest.mark.parametrize("name", ["byte_level", "bos"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_each_token_belongs_to_the_step_that_it_writes(name: str, side: str) -> None:
    tokenizer = tokenizers.TOKENIZERS[name]()
    encoder = Encoder(tokenizer, drop_last_step=False)
    rows = encoder.encode_all(
        [Example("a", "Why?", STEPS, "73"), Example("b", "How?", STEPS[:1], "24")], progress=False
    )
    batch = Collator(0, side, steps=True)(list(rows))
    for row, steps in enumerate((STEPS, STEPS[:1])):
        for number, step in enumerate(steps, 1):
            own = batch["cot"][row][batch["cot_step"][row] == number]
            assert "".join(tokenizer.decode(own).split()) == "".join(step.split())
    assert bool(((batch["cot_step"] > 0) == batch["cot_mask"]).all())
    assert "cot_step" not in Collator(0)(list(rows))


def test_a_token_of_two_steps_begins_the_later_one() -> None:
    assert firsts([(0, 2), (2, 4), (4, 5)], ("ab", "cd")) == [True, True, False]
    assert firsts([(0, 4), (4, 5)], ("ab", "cd")) == [True, False]
    assert firsts([], ()) == []


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ("explicit_embedded", (), "loss.step_decoder has no effect"),
        ("debug", ("loss.alpha2_kv=0", "latent.num_tokens=0"), "loss.step_decoder has no effect"),
        ("debug", ("loss.alpha2_kv=0", "latent.num_iterations=0"), "loss.step_decoder has no effect"),
    ],
)
def test_what_has_no_latents_has_nothing_to_write_from(config: str, settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(config, [*settings, "loss.step_decoder=1"])
    assert said in refused.value.message or "loss.step_decoder = 1 decodes latents" in refused.value.message


def test_its_size_without_a_decoder_has_no_effect() -> None:
    with pytest.raises(ConfigError, match="step_decoder_layers has no effect"):
        load_recipe("debug", ["loss.step_decoder_layers=1"])


@pytest.mark.parametrize(
    ("steps", "more", "said"),
    [
        ([], (), "no example of"),
        (["1+1=2"], ("dataset.drop_last_step=true",), "or dataset.drop_last_step=false"),
        (["1+1=2"], ("loss.step_decoder_layers=9",), "loss.step_decoder_layers = 9, but kava:embedded has 2 layers"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    steps: list[str], more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    row = {"question": "1+1?", "steps": steps, "answer": "2"}
    rows.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(8)), encoding="utf-8")
    words = ["train", "--config", "debug", "--output_dir", str(run), "--quiet", f"dataset.name={rows}"]
    assert main([*words, "dataset.val_size=0", "loss.alpha2_kv=0", "loss.step_decoder=1", *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(run.glob("checkpoint-*"))
