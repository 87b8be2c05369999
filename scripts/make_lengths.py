"""Makes the lengths that `kava bench train --lengths` draws its rows from: python scripts/make_lengths.py TRAIN.jsonl

TRAIN.jsonl is GSM8K's train set (openai/grade-school-math, MIT). A byte-level BPE of 12,000 tokens is learnt on its
texts; 2,000 rows drawn with seed 0 are counted in tokens, the last step left out as in training. Only numbers are
written: tokens of question, chain of thought and answer of each row.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kava.data.encode import Encoder
from kava.data.example import Example
from kava.data.rows import JsonRows
from kava.data.sources import gsm8k
from kava.files import write_text

OUTPUT = Path(__file__).resolve().parents[1] / "src" / "kava" / "lab" / "bench" / "lengths.json"
FORMS = {"gsm8k": "equation", "gsm8k-nl": "natural_language"}
VOCABULARY, ROWS = 12_000, 2_000


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def main(train: Path) -> None:
    rows = list(JsonRows(train))
    tokenizer = make_tokenizer([f"{row['question']}\n{row['answer']}" for _, row in rows])
    drawn = random.Random(0).sample(rows, ROWS)
    lengths = {}
    for name, form in FORMS.items():
        examples = [Example(where, *gsm8k.parse(row, where, form)) for where, row in drawn]
        encoded = Encoder(tokenizer, cot_type=form).encode_batch(examples)
        lengths[name] = [[len(row.question), len(row.cot), len(row.answer)] for row in encoded]
    facts = {
        "what": "tokens of question, chain of thought and answer of rows of GSM8K's train set",
        "source": "openai/grade-school-math, MIT licence; made by scripts/make_lengths.py",
        "tokenizer": f"byte-level BPE of {VOCABULARY} tokens, learnt on the same texts",
        "rows": f"{ROWS} of {len(rows)}, drawn with seed 0; the last step left out",
    }
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
    lines += [f" {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in lengths.items()]
    write_text(OUTPUT, "{\n" + ",\n".join(lines) + "\n}\n")
    for name, counts in lengths.items():
        print(name, *(f"{sum(column) / ROWS:.1f} (most {max(column)})" for column in zip(*counts, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
