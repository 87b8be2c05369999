"""kava export --gguf: llama.cpp thinks and answers with the student's own tokens, without torch."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import zoo
import zoo_tokenizers
from kava.backbone.artifact import write_student
from kava.backbone.families import family_of
from kava.backbone.load import assemble
from kava.backbone.masks import causal_mask, positions
from kava.cli.main import main
from kava.config import load_recipe
from kava.export.embeds import prompt_embeds
from kava.infer.student import Student

QUESTIONS = ["3+4?", "How many clips are left of 12 if 5 are lost?", "Why not 7*3-2?"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "engines" / "llama_cpp_latents.py"
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
# widths that llama.cpp takes: 32 numbers in a head, and no grouped layer of less than a block
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
STUDENTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": ("llama-gqa", WIDE, []),
    "llama tied, sequential": ("llama-mha", WIDE | {"num_key_value_heads": 2}, ["latent.method=sequential"]),
    "llama 3": ("llama-gqa", WIDE | {"rope_parameters": SCALED}, []),
    "qwen2": ("qwen2", WIDE, []),
    "qwen3": ("qwen3", WIDE | {"head_dim": 32}, ["loss.use_projection=false"]),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 2}, []),
}


class Loaded(NamedTuple):
    student: Student
    path: Path
    tokens: dict[int, list[int]]  # of Student.answer, by the question's place


def example() -> Any:
    spec = importlib.util.spec_from_file_location("llama_cpp_latents", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A student, its .gguf file and its answers."""
    pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    checkpoint = checkpoint_of(folder / "student", name)
    assert main(["export", str(checkpoint), "--gguf", str(folder / "student.gguf"), "--quiet"]) == 0
    assert {path.name for path in folder.iterdir()} == {"student", "student.gguf", "student.npz"}
    student = Student.from_pretrained(checkpoint, "cpu")
    tokens: list[list[int]] = []
    read = student.read
    monkeypatch.setattr(student, "read", lambda made, *rest: (tokens.append(list(made.tokens)), read(made, *rest))[1])
    student.answer(QUESTIONS, batch_size=1)
    return Loaded(student, folder / "student.gguf", dict(zip(student.by_length(QUESTIONS), tokens, strict=True)))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_file_holds_the_models_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers reads it, which undoes llama.cpp's orders itself."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    student, path, _ = exported(name, tmp_path, monkeypatch)
    lm = student.model.causal_lm
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=lm)["tensors"]
    wanted = dict(lm.state_dict())
    if lm.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert set(read) >= set(wanted)
    for key, weight in wanted.items():
        torch.testing.assert_close(torch.as_tensor(read[key]), weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_example_thinks_as_the_student_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounds, its projection in numpy and its loop, over an engine made of the student's own passes."""
    monkeypatch.setitem(sys.modules, "llama_cpp", ModuleType("llama_cpp"))
    student, path, wanted = exported(name, tmp_path, monkeypatch)
    model = student.model

    class StandIn(example().Thinker):  # type: ignore[misc]
        def __init__(self) -> None:
            self.read_head(path)
            self.place, self.columns = 0, torch.zeros(0, model.config.hidden_size)

        @torch.no_grad()
        def run(self, inputs: Any) -> np.ndarray:
            embeds = torch.as_tensor(inputs) if isinstance(inputs, np.ndarray) else model.embed(torch.tensor(inputs))
            self.columns = torch.cat([self.columns, embeds])
            self.place, real = len(self.columns), torch.ones(1, len(self.columns), dtype=torch.bool)
            self.hidden = model.run(self.columns[None], positions(real), causal_mask(real)).hidden[0]
            return self.hidden[-len(inputs) :].numpy()

        def forget(self, count: int) -> None:
            self.place -= count
            self.columns = self.columns[: self.place]

        @torch.no_grad()
        def logits(self) -> np.ndarray:
            return model.head(self.hidden[-1]).numpy()

    engine = StandIn()
    assert {i: engine.answer(row, 10) for i, row in enumerate(student.encode(QUESTIONS))} == wanted
    assert len({tuple(row) for row in wanted.values()}) > 1


def checkpoint_of(folder: Path, name: str) -> Path:
    family, sizes, more = STUDENTS[name]
    rounds = [] if more == ["latent.method=sequential"] else ["latent.num_iterations=3"]
    settings = ["lora.enabled=false", "evaluation.max_new_tokens=10", "latent.num_tokens=4", *rounds, *more]
    recipe, tokenizer = load_recipe("debug", settings), zoo_tokenizers.byte_level()
    lm = zoo.causal_lm(family, 0, torch.float32, vocab_size=len(tokenizer), **sizes)
    model = assemble(lm, family_of(lm.config, family), tokenizer, recipe)
    write_student(model, tokenizer, recipe, folder)
    return folder


def thinker(path: Path, **options: bool) -> Any:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (docs/export.md)")
    return example().Thinker(path, **options)


@torch.no_grad()
def prompt_logits(student: Student, question: str) -> torch.Tensor:
    """The logits after which the student's answer begins."""
    (embeds,) = prompt_embeds(student, [question])
    real = torch.ones(1, len(embeds), dtype=torch.bool)
    hidden = student.model.run(embeds[None], positions(real), causal_mask(real)).hidden
    return student.model.head(hidden[0, -1])


@pytest.mark.long
@pytest.mark.parametrize("name", STUDENTS)
def test_llama_cpp_gives_the_students_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, path, wanted = exported(name, tmp_path, monkeypatch)
    engine = thinker(path)
    assert {i: engine.answer(row, 10) for i, row in enumerate(student.encode(QUESTIONS))} == wanted


@pytest.mark.long
def test_half_precision_is_near(tmp_path: Path) -> None:
    """Weights and cache in float16: logits within 2 % of their spread."""
    pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    checkpoint = checkpoint_of(tmp_path / "student", "qwen2")
    path = tmp_path / "half.gguf"
    assert main(["export", str(checkpoint), "--gguf", str(path), "--dtype", "float16", "--quiet"]) == 0
    student, engine = Student.from_pretrained(checkpoint, "cpu"), thinker(path, f16_cache=True)
    engine.answer(student.encode(QUESTIONS)[1], 0)
    wanted = prompt_logits(student, QUESTIONS[1]).numpy()
    assert np.abs(engine.logits() - wanted).max() < 0.02 * np.ptp(wanted)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
    checkpoint, own = checkpoint_of(tmp_path / "student", "qwen2"), tmp_path / "own.gguf"
    own.write_text("mine")
    cases = {
        ("--gguf", str(tmp_path / "x.bin")): "does not end in .gguf",
        ("--gguf", str(own)): "did not write it",
        ("--gguf", str(tmp_path / "x.gguf"), "--dtype", "bfloat16"): "bfloat16 is not written",
    }
    for words, message in cases.items():
        assert main(["export", str(checkpoint), *words]) == 2
        assert message in capsys.readouterr().err
    assert own.read_text() == "mine"
