"""kava export: transformers alone, and plain generation after prompt embeddings, answer with the student's own tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo
import zoo_tokenizers
from hub import tiny_student
from kava.backbone import plain
from kava.backbone.artifact import write_student
from kava.backbone.families import family_of
from kava.backbone.load import assemble, build_model
from kava.cli.main import main
from kava.config import load_recipe
from kava.export import head
from kava.export.card import check_export
from kava.export.folder import export_folder
from kava.infer.student import Student

QUESTIONS = ["3+4?", "How many clips are left of 12 if 5 are lost?", "1?", "Why not 7*3-2?", "10 - 9?"]
LIMIT = 10
FAMILIES = ("llama-gqa", "qwen2", "qwen3", "gpt2")
KINDS = {
    "jacobi": [],
    "sequential": ["latent.method=sequential"],
    "pause": ["latent.num_iterations=0"],
    "no latents": ["latent.num_tokens=0", "loss.alpha2_kv=0"],
    "no projection": ["loss.use_projection=false"],
    "own cue": ["evaluation.cue=generated"],
}
REFUSES_KAVA = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kava":
            raise ImportError("kava must not be needed")
sys.meta_path.insert(0, Blocker())
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, questions = sys.argv[1], json.loads(sys.argv[2])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
answers = []
for size in (1, len(questions)):
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for start in range(0, len(questions), size):
            texts = [text + "\\n" for text in questions[start : start + size]]
            inputs = tokenizer(texts, return_tensors="pt", padding=True)
            out = model.generate(**inputs, custom_generate=folder, trust_remote_code=True)
            answers += out[:, inputs["input_ids"].shape[1] :].tolist()
print(json.dumps(answers))
"""


def settings(*more: str) -> list[str]:
    wanted = {"latent.num_tokens": "4", "latent.num_iterations": "3", "evaluation.max_new_tokens": str(LIMIT)}
    wanted |= dict(word.split("=") for word in more)
    if wanted.get("latent.method") == "sequential" or wanted["latent.num_tokens"] == "0":
        del wanted["latent.num_iterations"]
    return [f"{key}={value}" for key, value in wanted.items()]


def student_of(folder: Path, family: str = "llama-gqa", *more: str, seed: int = 0, **own: object) -> Path:
    """A folder of a student of all weights, random ones."""
    recipe = load_recipe("debug", ["lora.enabled=false", *settings(*more)])
    tokenizer = zoo_tokenizers.bos() if family.startswith("llama") else zoo_tokenizers.byte_level()
    sizes = {"vocab_size": len(tokenizer), **own}
    lm = zoo.causal_lm(family, seed, torch.float32, **sizes)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(lm.config, name, getattr(tokenizer, name))
    model = assemble(lm, family_of(lm.config, family), tokenizer, recipe)
    with torch.no_grad():
        for weight in model.project.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    write_student(model, tokenizer, recipe, folder)
    return folder


def until_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


def student_tokens(student: Student, monkeypatch: pytest.MonkeyPatch, **options: object) -> list[list[int]]:
    """The ids of Student.answer, which gives their text."""
    read, told = student.read, {}

    def spy(generation, *rest):
        answer = read(generation, *rest)
        told[id(answer)] = list(generation.tokens)
        return answer

    monkeypatch.setattr(student, "read", spy)
    answers = student.answer(QUESTIONS, **options)
    return [told[id(answer)] for answer in answers]


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def alone(
    folder: Path, rows: list[list[int]], side: str = "left", parts: tuple[Any, Any] | None = None, **arguments: object
) -> list[list[int]]:
    """The answers of transformers through the folder's own generate.py."""
    tokenizer, model = parts or loaded(folder)
    tokenizer.padding_side = side
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding=True)
    out = model.generate(**inputs, custom_generate=str(folder), trust_remote_code=True, **arguments)
    prompts = inputs["input_ids"].repeat_interleave(len(out) // len(rows), 0)
    assert torch.equal(out[:, : prompts.shape[1]], prompts)
    return [until_end(row, tokenizer.eos_token_id) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]


def check_all_ways(checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export_folder(checkpoint, folder, questions=QUESTIONS)
    assert (made.equal, made.compared) == (5, 5)
    student = Student.from_pretrained(checkpoint, "cpu")
    wanted, rows = student_tokens(student, monkeypatch, batch_size=2), student.encode(QUESTIONS)
    assert len({tuple(row) for row in wanted}) > 2, "answers that are all alike show nothing"
    parts = loaded(folder)
    assert alone(folder, rows, "left", parts) == wanted
    assert alone(folder, rows, "right", parts) == wanted
    assert [alone(folder, [row], parts=parts)[0] for row in rows[:2]] == wanted[:2]
    embeds = tmp_path / "embeds.safetensors"
    assert main(["export", str(checkpoint), "--embeds", str(embeds), "--questions", *QUESTIONS]) == 0
    stored, model = load_file(embeds), parts[1]
    mask = (torch.arange(stored["embeds"].shape[1]) >= stored["embeds"].shape[1] - stored["lengths"][:, None]).long()
    out = model.generate(inputs_embeds=stored["embeds"], attention_mask=mask)
    assert [until_end(row, model.generation_config.eos_token_id) for row in out.tolist()] == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_with_the_same_tokens(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all_ways(student_of(tmp_path / "student", family), tmp_path / "out", tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_latents_answers_with_the_same_tokens(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all_ways(student_of(tmp_path / "student", "llama-mha", *KINDS[kind]), tmp_path / "out", tmp_path, monkeypatch)


def test_adapters_and_trained_rows_are_folded_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA student of the shipped checkpoint, its adapters off their start."""
    recipe = load_recipe("debug", ["lora.enabled=true", "lora.dropout=0", *settings()])
    model, tokenizer = build_model(recipe)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    write_student(model.eval(), tokenizer, recipe, tmp_path / "student")
    check_all_ways(tmp_path / "student", tmp_path / "out", tmp_path, monkeypatch)


def test_a_student_that_writes_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("adaptive", ["model.name=kava:embedded", "lora.enabled=false", "evaluation.max_new_tokens=9"])
    model, tokenizer = build_model(recipe)
    write_student(model.eval(), tokenizer, recipe, tmp_path / "student")
    check_all_ways(tmp_path / "student", tmp_path / "out", tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mistral", "phi3", "olmo2", "smollm3", "granite", "gemma2", "gemma3_text"])
def test_other_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled inputs, windows, capped logits, several rotations."""
    tokenizer, recipe = zoo_tokenizers.byte_level(), load_recipe("debug", ["lora.enabled=false", *settings()])
    config = zoo.checkpoint_config(name)
    small = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": tokenizer.eos_token_id,
             "pad_token_id": tokenizer.pad_token_id, "sliding_window": 6}  # fmt: skip
    config.update({key: value for key, value in small.items() if hasattr(config, key)})
    config.tie_word_embeddings = False  # with scaled inputs a tied head repeats the last token
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    for weight in lm.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model = assemble(lm, family_of(lm.config, name), tokenizer, recipe)
    write_student(model, tokenizer, recipe, tmp_path / "student")
    check_all_ways(tmp_path / "student", tmp_path / "out", tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(tmp_path_factory.mktemp("run") / "best_checkpoint")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "student"
    export_folder(checkpoint, folder)
    return folder


def test_the_other_modes(checkpoint: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.from_pretrained(checkpoint, "cpu")
    for mode in ("direct", "cot"):
        with monkeypatch.context() as patch:
            wanted = student_tokens(student, patch, mode=mode)
        assert alone(exported, student.encode(QUESTIONS), mode=mode) == wanted


def test_sampling_is_drawn_and_settings_of_the_base_model_are_gone(exported: Path, checkpoint: Path) -> None:
    rows = Student.from_pretrained(checkpoint, "cpu").encode(QUESTIONS)
    drawn = [alone(exported, rows, do_sample=True, temperature=1.5, top_k=0) for _ in range(2)]
    assert drawn[0] != drawn[1]
    several = alone(exported, rows[:1], do_sample=False, num_beams=2, num_return_sequences=2)
    assert len(several) == 2
    stored = json.loads((exported / "generation_config.json").read_text())
    assert stored["max_new_tokens"] == 8
    assert not {"repetition_penalty", "temperature"} & set(stored)


def test_the_chat_template_writes_the_students_prompt(exported: Path, checkpoint: Path) -> None:
    tokenizer, student = AutoTokenizer.from_pretrained(exported), Student.from_pretrained(checkpoint, "cpu")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTIONS[1]}], return_dict=True)["input_ids"]
    assert ids == student.encode(QUESTIONS[1:2])[0]
    with pytest.raises(Exception, match="one question"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


def test_a_deleted_tensor_is_named(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    rows = Student.from_pretrained(checkpoint, "cpu").encode(QUESTIONS)
    for file in ("model.safetensors", "custom_generate/latent_head.safetensors"):
        tensors = load_file(exported / file)
        for name in [*tensors][:: 5 if file[0] == "m" else 1]:
            broken = tmp_path / name / "student"
            shutil.copytree(exported, broken)
            save_file({key: value for key, value in tensors.items() if key != name}, broken / file, {"format": "pt"})
            with pytest.raises((ValueError, RuntimeError), match=name.replace(".", r"\.")):
                alone(broken, rows)
            with pytest.raises(Exception, match="sha256"):
                check_export(broken)


def test_kava_never_runs_the_folders_code(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmful = tmp_path / "generate.py"
    harmful.write_text("raise SystemExit('this code was run')")
    monkeypatch.setattr(head, "SOURCE", harmful)
    assert export_folder(checkpoint, tmp_path / "out", questions=QUESTIONS).equal == 5
    assert (tmp_path / "out" / "custom_generate" / "generate.py").read_text() == harmful.read_text()


def test_the_card_names_every_file_and_nothing_of_this_machine(exported: Path, checkpoint: Path) -> None:
    card = check_export(exported)
    assert set(card["files"]) >= {"model.safetensors", "config.json", "custom_generate/generate.py"}
    assert str(checkpoint) not in (exported / "kava_export.json").read_text()


def test_dtype_dry_run_and_sizes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    words = ["export", str(checkpoint), str(out), "--dtype", "bfloat16", "--quiet"]
    assert main([*words, "--dry_run"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    assert not out.exists()
    assert main([*words, "--check", "2", "--questions", *QUESTIONS]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    weights = load_file(out / "model.safetensors")
    assert sum(w.numel() * w.element_size() for w in weights.values()) == sizes["weights"]
    head = load_file(out / "custom_generate" / "latent_head.safetensors")
    assert sum(w.numel() * w.element_size() for w in head.values()) == sizes["latent_head"]


def test_bad_input_is_one_line_and_leaves_everything(
    checkpoint: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    cases = {
        (str(checkpoint),): "nothing to write",
        (str(checkpoint), str(full)): "did not write it",
        (str(checkpoint), str(checkpoint)): "did not write it",
        (str(exported), str(tmp_path / "new")): "kava export made",
        (str(tmp_path / "none"), str(tmp_path / "new")): "does not exist",
        (str(checkpoint), "--embeds", str(tmp_path / "e")): "no questions",
        (str(checkpoint), "--embeds", str(full / "mine.txt"), "--questions", "a"): "did not write it",
        (str(checkpoint), str(tmp_path / "new"), "--questions", "a"): "no effect",
        (str(checkpoint), "--embeds", str(tmp_path / "e"), "--questions", "a", "--dtype", "float16"): "no effect",
    }
    for words, message in cases.items():
        assert main(["export", *words]) == 2, words
        err = capsys.readouterr().err
        assert message in err.splitlines()[0], err
    assert main(["infer", "--checkpoint", str(exported), "--questions", "a"]) == 2
    assert "kava export made" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    assert main(["export", str(checkpoint), str(tmp_path / "new")]) == 2
    assert "MiB are free" in capsys.readouterr().err
    assert (full / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_nothing_and_an_export_may_be_replaced(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "place" / "out"
    with monkeypatch.context() as patch:

        def full_disk(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(plain, "save_tokenizer", full_disk)
        assert main(["export", str(checkpoint), str(out)]) == 2
        assert "No space left" in capsys.readouterr().err
    assert [*out.parent.iterdir()] == []
    for _ in range(2):
        assert main(["export", str(checkpoint), str(out), "--quiet"]) == 0
    (out / "note.txt").write_text("added")
    assert main(["export", str(checkpoint), str(out)]) == 2


def test_a_weight_that_was_not_stored_as_it_is_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from kava.backbone.artifact import load_student
    from kava.errors import RunError

    model, tokenizer, _ = load_student(checkpoint)
    plain.save_plain(model, tokenizer, tmp_path)
    count = plain.check_plain(model.causal_lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert count == len(tensors)
    for change in ("lost", "changed"):
        name = "model.layers.1.mlp.up_proj.weight"
        kept = {key: value for key, value in tensors.items() if key != name}
        if change == "changed":
            kept[name] = tensors[name] + 1e-6
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj"):
            plain.check_plain(model.causal_lm, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_that_cannot_import_kava(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, folder = student_of(tmp_path / "student", family), tmp_path / "out"
    export_folder(checkpoint, folder)
    student = Student.from_pretrained(checkpoint, "cpu")
    wanted = student_tokens(student, monkeypatch)
    run = subprocess.run(
        [sys.executable, "-I", "-c", REFUSES_KAVA, str(folder), json.dumps(QUESTIONS)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    answers = [until_end(row, student.tokenizer.eos_token_id) for row in json.loads(run.stdout)]
    assert answers == wanted * 4
