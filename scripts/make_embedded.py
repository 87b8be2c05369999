"""Makes the small checkpoint that ships with the package: a tiny GPT-2 that solves the built-in tasks in words.

    python scripts/make_embedded.py OUTPUT_FOLDER [--steps 600]

It writes a byte-level tokenizer learnt on the built-in sets, trains a random model on explicit chains of thought (the
teacher's cross-entropy alone) and saves both as an ordinary transformers folder. No test problem is seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from kava.backbone.artifact import load_student
from kava.config import GeneratorConfig, load_recipe
from kava.data.encode import CUE, QUESTION_END
from kava.data.generator import BUILT_IN, Generator
from kava.files import write_json
from kava.training.run import train

EOS, PAD = "<eos>", "<pad>"
# GPT-2 in small: learned positions make "the first operation" the same place in every question, whatever its length.
SHAPE = {"n_embd": 96, "n_inner": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_pytorch_tanh"}


def make_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, so that any text has tokens and every result is one token."""
    texts = []
    for name in BUILT_IN:
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


def make_random(folder: Path) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SHAPE, **PLAIN, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_portable(path: Path) -> None:
    """transformers 5 writes a class name and keys that 4.57 does not know."""
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: config[name] for name in ("eos_token", "model_max_length", "pad_token")}
    special = {"additional_special_tokens": config["extra_special_tokens"]}
    write_json(path, special | kept | {"tokenizer_class": "PreTrainedTokenizerFast"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        start, run = Path(temporary) / "random", Path(temporary) / "run"
        make_random(start)
        recipe = load_recipe(
            "embedded",
            [
                f"model.name={start}", "loss.student_ce=0", "loss.alpha2_kv=0", f"training.max_steps={options.steps}",
                "training.learning_rate=2e-3", "logging.report_to=[]", "logging.eval_steps=1000",
            ],
        )  # fmt: skip
        outcome = train(recipe, run)
        model, tokenizer, _ = load_student(run / "best_checkpoint")
        shutil.rmtree(options.output, ignore_errors=True)
        model.causal_lm.config.use_cache = True
        model.causal_lm.set_attn_implementation("sdpa")
        model.causal_lm.save_pretrained(options.output)
        tokenizer.save_pretrained(options.output)
        make_portable(options.output / "tokenizer_config.json")
        print(f"explicit chain of thought, validation accuracy {outcome.best:.3f}; saved in {options.output}")


if __name__ == "__main__":
    main()
