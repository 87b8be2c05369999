"""Makes a checkpoint that ships with the package: a tiny GPT-2 that solves a built-in task in words.

    python scripts/make_embedded.py OUTPUT_FOLDER [--config embedded] [--steps 600] [--run FOLDER]

It writes a byte-level tokenizer learnt on the built-in sets, trains a random model on explicit chains of thought (the
teacher's cross-entropy alone), saves both as an ordinary transformers folder, and says of how many test problems the
whole chain of thought is right. No test problem is trained on. `--config` names the recipe that starts from the
checkpoint; what its model and its training need is in MADE. With `--run` the run is kept, and the same command goes on
with it after a stop.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from kava import Student
from kava.backbone.artifact import load_student
from kava.config import GeneratorConfig, Recipe, load_recipe
from kava.data.encode import CUE, QUESTION_END
from kava.data.generator import Generator
from kava.files import write_json
from kava.training.run import train

EOS, PAD = "<eos>", "<pad>"
READ = ("chains", "variables", "chains_nl", "variables_nl")  # what the tokenizer is learnt on, for every checkpoint
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class Made:
    """The shape of a recipe's checkpoint, its updates, and settings of its training alone."""

    shape: dict[str, int]
    steps: int
    settings: tuple[str, ...] = ()


# GPT-2 in small: learned positions make "the first operation" the same place in every question, whatever its length.
LARGER = {"n_embd": 128, "n_inner": 512, "n_layer": 3, "n_head": 4, "n_positions": 256}
SMALL_CHECK = "evaluation.validation_size=200"
MADE = {
    "embedded": Made({"n_embd": 96, "n_inner": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}, 600),
    "long_chains": Made(LARGER, 2000, ("dataset.generator.min_steps=1", SMALL_CHECK)),
    "reachability": Made(LARGER, 2000, ("dataset.generator.min_steps=1", SMALL_CHECK)),
    "multiplication": Made(LARGER, 2000, (SMALL_CHECK,)),
}


def make_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, so that any text has tokens and every digit is one token."""
    texts = []
    for name in READ:
        for example in Generator(name, GeneratorConfig(train_size=2000)).split("train"):
            texts.append(f"{example.question}{QUESTION_END}{' '.join(example.steps)}{CUE}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def make_random(folder: Path, shape: dict[str, int]) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **PLAIN, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def explicit_recipe(name: str, start: Path, made: Made, steps: int) -> Recipe:
    """The recipe with whole chains of thought and the teacher's cross-entropy alone."""
    words = [
        f"model.name={start}", "loss.student_ce=0", "loss.alpha2_kv=0", "dataset.drop_last_step=false",
        f"training.max_steps={steps}", "training.learning_rate=2e-3", "logging.report_to=[]", "logging.eval_steps=1000",
        "logging.save_steps=250", *made.settings,
    ]  # fmt: skip
    return load_recipe(name, words)


def make_portable(path: Path) -> None:
    """transformers 5 writes a class name and keys that 4.57 does not know."""
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: config[name] for name in ("eos_token", "model_max_length", "pad_token")}
    special = {"additional_special_tokens": config["extra_special_tokens"]}
    write_json(path, special | kept | {"tokenizer_class": "PreTrainedTokenizerFast"})


def right_chains(student: Student, recipe: Recipe) -> dict[int, tuple[int, int]]:
    """By number of steps: how many test problems have every step and the answer right, and of how many."""
    examples = Generator(recipe.dataset.name, recipe.dataset.generator, recipe.dataset.seed).split("test")
    answers = student.answer([example.question for example in examples], mode="cot", batch_size=100)
    counts: dict[int, tuple[int, int]] = {}
    for example, answer in zip(examples, answers, strict=True):
        right, total = counts.get(len(example.steps), (0, 0))
        whole = f"{' '.join(example.steps)}{CUE}{example.answer}"
        counts[len(example.steps)] = (right + (answer.text.strip() == whole), total + 1)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", choices=MADE, default="embedded")
    parser.add_argument("--steps", type=int, help="updates, in place of those in MADE")
    parser.add_argument("--run", type=Path, help="folder of the run, kept; default: a temporary one")
    options = parser.parse_args()
    made = MADE[options.config]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run or Path(temporary)
        start, run = folder / "random", folder / "run"
        make_random(start, made.shape)
        recipe = explicit_recipe(options.config, start, made, options.steps or made.steps)
        if code := train(recipe, run, resume="auto").exit_code:
            sys.exit(code)
        model, tokenizer, _ = load_student(run / "best_checkpoint")
        counts = right_chains(Student.from_pretrained(run / "best_checkpoint"), recipe)
        shutil.rmtree(options.output, ignore_errors=True)
        model.causal_lm.config.use_cache = True
        model.causal_lm.set_attn_implementation("sdpa")
        model.causal_lm.save_pretrained(options.output)
        tokenizer.save_pretrained(options.output)
        make_portable(options.output / "tokenizer_config.json")
    for steps, (right, total) in sorted(counts.items()):
        print(f"{steps} steps: {right} of {total} chains right")
    right, total = map(sum, zip(*counts.values(), strict=True))
    print(f"{right / total:.1%} of {total} test chains are right in every step; saved in {options.output}")


if __name__ == "__main__":
    main()
