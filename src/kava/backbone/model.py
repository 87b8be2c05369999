"""A causal language model whose layers can be read, and the student made of one: special tokens and a projection.

On the latent line the same weights are the teacher; on the explicit line student and teacher are two such models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kava.backbone.attention import KV
from kava.backbone.families import Family
from kava.backbone.kv import Pass, run_decoder
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig
from kava.errors import ModelError
from kava.latents import iterate, make_projection, start, unroll


class Backbone(nn.Module):
    """Runs passes and shows what they leave behind. `backbone`: a causal LM of transformers, or a PeftModel around one."""

    def __init__(self, backbone: Any, family: Family):
        super().__init__()
        self.backbone = backbone
        self.family = family

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, adapters in place."""
        return self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone

    @property
    def decoder(self) -> Any:
        return getattr(self.causal_lm, self.family.decoder)

    @property
    def config(self) -> Any:
        return self.causal_lm.config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_kv_heads(self) -> int:
        return getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads

    @property
    def head_size(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that learned positions can count; rotary ones have no hard end."""
        return None if self.family.rotary else self.config.max_position_embeddings

    @property
    def scale(self) -> float:
        """What attention multiplies q.k with."""
        return self.head_size**-0.5

    def embed(self, ids: Tensor) -> Tensor:
        return self.causal_lm.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.get_output_embeddings()(hidden)

    def run(
        self, embeds: Tensor, positions: Tensor, mask: Tensor, prefix: KV | None = None, all_layers: bool = False
    ) -> Pass:
        return run_decoder(self.decoder, self.family, embeds, positions, mask, prefix, all_layers)

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that training may change, by name: what a student's folder holds."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


class LatentModel(Backbone):
    """Makes latents; knows nothing of losses or text. `special` None: a student of the explicit line, which has none."""

    def __init__(
        self, backbone: Any, family: Family, special: SpecialTokens | None, latent: LatentConfig, use_projection: bool
    ):
        super().__init__(backbone, family)
        self._special = special
        self.latent = latent
        weight = next(self.backbone.parameters())
        projection = make_projection(
            self.config.hidden_size, use_projection and self.feeds_back
        )  # nothing trains in vain
        self.project = projection.to(device=weight.device, dtype=_at_least_float32(weight.dtype))

    @property
    def special(self) -> SpecialTokens:
        if self._special is None:
            raise ModelError(
                "this student was trained on the explicit line: it has no latents", "ask it with --mode cot"
            )
        return self._special

    @property
    def rounds(self) -> int:
        """Passes that the method counts between the first one and the answer: T, or M when decoded in sequence."""
        latent = self.latent
        return (
            0 if not self.feeds_back else latent.num_tokens if latent.method == "sequential" else latent.num_iterations
        )

    def slots(self, batch: int, bot: bool = True) -> Tensor:
        """[B, 1 + M] ids of <bot> and the latent slots."""
        ids = [self.special.bot] * bot + [self.special.latent] * self.latent.num_tokens
        return torch.tensor(ids, dtype=torch.long, device=self.device).expand(batch, -1)

    @property
    def feeds_back(self) -> bool:
        return self.latent.feeds_back

    def think(self, hidden: Tensor, run: Any) -> Tensor:
        """Input embeddings [B, M, E] of the latents' last pass.

        hidden [B, 1 + M, E] at <bot> and the slots after pass 0; run(embeds) -> hidden states on the [Q, <bot>] prefix.
        """
        dtype = hidden.dtype

        def project(states: Tensor) -> Tensor:
            return self.project(states).to(dtype)

        if self.latent.method == "sequential":
            return unroll(project(hidden[:, :1]), run, project, self.latent.num_tokens)
        return iterate(start(hidden, project), run, project, self.latent.num_iterations - 1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
