"""The tokenizer and the three special tokens of the student's text."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name

from kava.errors import ModelError
from kava.files import write_json

NAMES = ("<bot>", "<latent>", "<eot>")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of <bot> (thinking begins), <latent> (one slot) and <eot> (thinking ends)."""

    bot: int
    latent: int
    eot: int

    @property
    def ids(self) -> list[int]:
        return [self.bot, self.latent, self.eot]


def add_special_tokens(tokenizer: Any) -> SpecialTokens:
    """Adds the missing special tokens and returns the ids; a second call changes nothing."""
    parameters = inspect.signature(tokenizer.add_special_tokens).parameters
    of_5, of_4 = "replace_extra_special_tokens", "replace_additional_special_tokens"  # versions of transformers
    keep_others = {of_5 if of_5 in parameters else of_4: False}
    tokenizer.add_special_tokens({"additional_special_tokens": list(NAMES)}, **keep_others)
    return SpecialTokens(*(tokenizer.convert_tokens_to_ids(name) for name in NAMES))


def names_own_class(tokenizer: Any, source: str | Path, revision: str | None) -> bool:
    """Whether the tokenizer's files name a class that comes with them, one that transformers does not have.

    Not asked to run it, transformers reads such files with a general class of its own where it knows the model's family.
    """
    own = tokenizer.init_kwargs.get("auto_map")
    if not own or (isinstance(own, dict) and "AutoTokenizer" not in own):
        return False
    name = get_tokenizer_config(source, revision=revision).get("tokenizer_class")
    return name is None or tokenizer_class_from_name(name) is None


@torch.no_grad()
def make_room(model: Any, special: SpecialTokens) -> None:
    """Initialises the embedding rows of the special tokens: the mean of the other rows plus a little noise.

    Deterministic, because untrained rows (an untied output head under LoRA) are not saved. Never shrinks: many
    checkpoints have more rows than their tokenizer has tokens.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if max(special.ids) >= rows:
        model.resize_token_embeddings(max(special.ids) + 1, mean_resizing=False)
    for layer in {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        if layer is None:
            raise ModelError("the model has no output embedding, so it is not a causal language model")
        weight = layer.weight
        if weight.is_meta:  # it has sizes only
            continue
        others = torch.ones(weight.shape[0], dtype=torch.bool)
        others[special.ids] = False
        known = weight[others.to(weight.device)].float()
        noise = torch.randn(len(special.ids), weight.shape[1], generator=torch.Generator().manual_seed(0))
        fresh = known.mean(0) + 0.1 * known.std(0) * noise.to(weight.device)
        weight[special.ids] = fresh.to(weight.dtype)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves the tokenizer so that transformers 4.57 can load it, too: 5 renamed a class and a key."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # otherwise 4.57 returns token_type_ids, which GPT-2 adds to the embedding
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    write_json(path, config)
