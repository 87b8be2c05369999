"""Rows of random tokens with the lengths of real ones, and a plain model on as many tokens: the bound of any order."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from kava.backbone.model import LatentModel
from kava.data.cut import row_lengths
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.lab.bench.reference import CUE, library_twin
from kava.objective.records import Batch

FILE = Path(__file__).with_name("lengths.json")
NAMES = ("gsm8k", "gsm8k-nl")


def real_rows(name: str, count: int, vocabulary: int) -> list[Encoded]:
    """`count` rows with the lengths of a data set (lengths.json) and random tokens."""
    lengths = json.loads(FILE.read_text(encoding="utf-8"))[name]
    if count > len(lengths):
        raise ConfigError(f"--batch_size {count}: lengths of {len(lengths)} rows are known of {name}", "lower it")
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocabulary - 3, (length,), generator=generator).tolist()

    cue = draw(CUE)
    return [
        Encoded(f"bench/{i}", draw(question), draw(cot), [False] * cot, cue, draw(answer), 0)
        for i, (question, cot, answer) in enumerate(lengths[:count])
    ]


def real_tokens(model: LatentModel, batch: Batch) -> int:
    """What all passes of the packed order read, without padding."""
    rows, latents, rounds = len(batch["example_id"]), model.latent.num_tokens, model.latent.num_iterations
    first = sum(row_lengths(batch)) + rows * (1 + latents)
    answer = int(batch["tail_mask"].sum()) + rows * (latents + 1)
    return first + (rounds - 1) * rows * latents + answer


def library_step(model: LatentModel, batch: Batch, pieces: int) -> Callable[[], None]:
    """Forward and backward of the library's own model over as many tokens as `real_tokens`, in rows of one length without
    padding, with logits at as many positions as the loss has targets; in as many pieces as ours."""
    targets = int(batch["cot_mask"].sum() + 2 * batch["tail_mask"].sum())
    twin, rows = library_twin(model), len(batch["example_id"])
    length = round(real_tokens(model, batch) / rows)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator).to(model.device)
    share = targets / rows  # of a row

    def step() -> None:
        model.zero_grad(set_to_none=True)
        for part in ids.tensor_split(pieces):
            hidden = getattr(twin, model.family.decoder)(input_ids=part, use_cache=False).last_hidden_state
            count = round(share * len(part))
            logits = model.head(hidden.flatten(0, 1)[:count])
            F.cross_entropy(logits.float(), part.flatten()[:count], reduction="sum").div(targets).backward()

    return step
