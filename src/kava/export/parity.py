"""Does an exported folder answer as the student does? The same questions, token for token."""

from collections.abc import Sequence
from pathlib import Path

import torch

from kava.backbone.plain import load_exported
from kava.data.collate import Collator
from kava.export.generate import generate
from kava.infer.student import Sampling, Student

GREEDY = Sampling()
Told = tuple[str, int, bool]  # an answer's text, its number of tokens with the end token, and whether it was cut off


def answers_of(student: Student, questions: Sequence[str], limit: int) -> list[Told]:
    """The student's greedy answers."""
    answers = student.answer(questions, max_new_tokens=limit, sampling=GREEDY)
    return [(answer.text, answer.num_tokens, answer.truncated) for answer in answers]


@torch.no_grad()
def exported_answers(folder: Path, student: Student, questions: Sequence[str], limit: int) -> list[Told]:
    """The greedy answers of the folder's model, from the same ids.

    Runs this package's generate.py, of which the folder has a copy; the folder's own file is never run.
    """
    lm, tokenizer = load_exported(folder), student.tokenizer
    rows, size, told = student.encode(questions), student.recipe.evaluation.batch_size, []
    for start in range(0, len(rows), size):
        ids, mask = Collator(tokenizer.pad_token_id).pad(rows[start : start + size])
        out = generate(lm, ids, mask.long(), do_sample=False, max_new_tokens=limit)
        for row in out[:, ids.shape[1] :].tolist():
            ends = tokenizer.eos_token_id in row
            tokens = row[: row.index(tokenizer.eos_token_id)] if ends else row
            told.append((tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens) + ends, not ends))
    return told
