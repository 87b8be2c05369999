"""Prompt embeddings: a question with its latents as input embeddings, for any engine that generates after embeddings.

The keys and values of the last round are those of one plain causal pass over [question <bot> e_1 .. e_M <eot> cue], so an
engine that never heard of latents answers as the student does.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from kava.errors import DataError
from kava.files import write_bytes
from kava.infer.checks import own_mode
from kava.infer.student import Student

FORMAT = "kava prompt embeddings 1"


@torch.no_grad()
def prompt_embeds(student: Student, questions: Sequence[str], progress: bool = False) -> list[Tensor]:
    """The input embeddings [L, E] after which each question's answer begins, in the model's dtype."""
    for i, problem in student.too_long(questions).items():
        raise DataError(f"question {i + 1}: {problem}", "ask a shorter question")
    model, mode = student.model, own_mode(student.recipe)
    rows = student.encode(questions)
    after = [] if mode == "cot" else [model.special.eot, *student.lead(mode)]
    feeds_back = mode == "latent" and model.feeds_back
    latents = student.think(questions, progress=progress) if feeds_back else [None] * len(rows)

    def embed(ids: Sequence[int]) -> Tensor:
        return model.embed(torch.tensor(ids, dtype=torch.long, device=model.device)).detach().cpu()

    made = []
    for row, latent in zip(rows, latents, strict=True):
        if latent is None:
            slots = [] if mode == "cot" else model.slots(1)[0].tolist()
            made.append(embed([*row, *slots, *after]))
        else:
            question = embed([*row, model.special.bot])
            made.append(torch.cat([question, latent.to(question), embed(after)]))
    return made


def write_embeds(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes `embeds` [n, L, E], padded with zeros on the left, and `lengths` [n]: row i is embeds[i, -lengths[i]:]."""
    lengths = torch.tensor([len(row) for row in rows])
    embeds = rows[0].new_zeros(len(rows), int(lengths.max()), rows[0].shape[1])
    for place, row in enumerate(rows):
        embeds[place, -len(row) :] = row
    write_bytes(path, save({"embeds": embeds, "lengths": lengths}, metadata={"format": FORMAT, "padding": "left"}))


def embeds_of_ours(path: Path) -> bool:
    """Whether `write_embeds` wrote this file."""
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(4096)
