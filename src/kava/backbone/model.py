"""A causal language model that returns its keys and values, and the student made of it with special tokens and projection.

On the latent line one model is teacher and student; on the explicit line they are two models.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kava.align.rope import Rotary
from kava.backbone.attention import KV, SLOT, Call
from kava.backbone.families import Family
from kava.backbone.kv import KVShape, Pass, keywords_arrive
from kava.backbone.masks import causal_mask
from kava.backbone.masks import positions as positions_of
from kava.backbone.rotary import read_rotary
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig
from kava.errors import ModelError
from kava.latents import iterate, make_projection, start, unroll


class Backbone(nn.Module):
    """Runs passes and returns their hidden states, keys and values. `backbone`: a causal LM of transformers, or a PeftModel."""

    def __init__(self, backbone: Any, family: Family):
        super().__init__()
        self.backbone = backbone
        self.family = family

    @property
    def causal_lm(self) -> Any:
        """The transformers model, with LoRA layers in place."""
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
    def kv_shape(self) -> KVShape:
        config, heads = self.config, self.config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return KVShape(config.num_hidden_layers, kv_heads, head_size, config.hidden_size)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence with learned positions; None for rotary ones, which have no hard limit."""
        return None if self.family.rotary else self.config.max_position_embeddings

    @cached_property
    def rotary(self) -> Rotary | None:
        """The rotary embedding of its keys; None: its positions are in the hidden states."""
        return read_rotary(self.decoder.rotary_emb, self.family.name) if self.family.rotary else None

    @property
    def scale(self) -> float:
        """The factor of q.k in attention."""
        return self.kv_shape.head_size**-0.5

    def embed(self, ids: Tensor) -> Tensor:
        return self.causal_lm.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.get_output_embeddings()(hidden)

    def run(
        self, embeds: Tensor, positions: Tensor, mask: Tensor, prefix: KV | None = None, all_layers: bool = False
    ) -> Pass:
        """Runs embeds [B, T, E] at `positions` under the bool mask [B, 1, T, P + T]; gradients reach the prefix."""
        call = Call(prefix)
        slots = [] if keywords_arrive(self.family) else [block.attn for block in self.decoder.h]
        for module in slots:
            setattr(module, SLOT, call)
        try:
            out = self.decoder(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False,
                output_hidden_states=all_layers, **({} if slots else {"kava_call": call}),
            )  # fmt: skip
        finally:
            for module in slots:
                delattr(module, SLOT)
        order = range(len(call.keys))
        queries, keys, values = ([part[i] for i in order] for part in (call.queries, call.keys, call.values))
        layers = tuple(out.hidden_states[1:]) if all_layers else None
        return Pass(out.last_hidden_state, queries, keys, values, layers)

    def run_text(self, ids: Tensor, mask: Tensor, all_layers: bool = False) -> Pass:
        """A causal pass over ids [B, T] with padding anywhere."""
        return self.run(self.embed(ids), positions_of(mask), causal_mask(mask), all_layers=all_layers)

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by name, as saved in a student's folder."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


class LatentModel(Backbone):
    """The student: a backbone that makes latents. `special` None: a student of the explicit line, without latents."""

    def __init__(
        self, backbone: Any, family: Family, special: SpecialTokens | None, latent: LatentConfig, use_projection: bool
    ):
        super().__init__(backbone, family)
        self._special = special
        self.latent = latent
        weight = next(self.backbone.parameters())
        projection = make_projection(self.config.hidden_size, use_projection and self.feeds_back)
        dtype = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
        self.project = projection.to(device=weight.device, dtype=dtype)

    @property
    def special(self) -> SpecialTokens:
        if self._special is None:
            raise ModelError(
                "this student was trained on the explicit line: it has no latents", "ask it with --mode cot"
            )
        return self._special

    @property
    def rounds(self) -> int:
        """Latent passes between the first pass and the answer: T, or M if decoded sequentially."""
        if not self.feeds_back:
            return 0
        return self.latent.num_tokens if self.latent.method == "sequential" else self.latent.num_iterations

    def slots(self, batch: int, bot: bool = True) -> Tensor:
        """[B, 1 + M] ids of <bot> and the latent slots."""
        ids = [self.special.bot] * bot + [self.special.latent] * self.latent.num_tokens
        return torch.tensor(ids, dtype=torch.long, device=self.device).expand(batch, -1)

    @property
    def feeds_back(self) -> bool:
        return self.latent.feeds_back

    def think(self, hidden: Tensor, run: Any) -> Tensor:
        """Input embeddings [B, M, E] of the latents in their last pass.

        hidden [B, 1 + M, E] at <bot> and the slots after pass 0; run(embeds) -> hidden states on the [Q, <bot>] prefix.
        """
        dtype = hidden.dtype

        def project(states: Tensor) -> Tensor:
            return self.project(states).to(dtype)

        if self.latent.method == "sequential":
            return unroll(project(hidden[:, :1]), run, project, self.latent.num_tokens)
        return iterate(start(hidden, project), run, project, self.latent.num_iterations - 1)
