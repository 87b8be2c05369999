"""A causal language model that returns its keys and values, and the student made of it with special tokens and projection.

On the latent line one model is teacher and student; on the explicit line they are two models.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kava.align.rope import Rotary
from kava.backbone.attention import KV, SLOT, Call
from kava.backbone.branches import Attends, as_branches, text
from kava.backbone.families import Family, rotated_alike, windows_of
from kava.backbone.kv import KVShape, Pass, keywords_arrive
from kava.backbone.masks import causal_mask
from kava.backbone.masks import positions as positions_of
from kava.backbone.rotary import read_rotary
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig
from kava.errors import ModelError
from kava.latents import iterate, make_projection, start, unroll
from kava.losses import Head
from kava.shapes import soft_cap

UNIT_LAYER = "unit_layer"  # in the names of weights whose layers are units (`layer_units.py`)


def plain_name(name: str) -> str:
    """The name of a weight as it is without units."""
    return name.replace(f".{UNIT_LAYER}.", ".")


class Backbone(nn.Module):
    """Runs passes and returns their hidden states, keys and values. `backbone`: a causal LM of transformers, or a PeftModel.

    `dense_attention` (system.attention: dense): texts and trees attend under one mask over all their columns.
    """

    dense_attention = False

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
        if not rotated_alike(self.config):
            raise ModelError(
                f"{self.family.name}: its layers rotate keys differently, so no rotary embedding holds for all of them",
                "choose a model of another family",
            )
        return read_rotary(self.decoder.rotary_emb, self.family.name) if self.family.rotary else None

    @property
    def scale(self) -> float:
        """The factor of q.k in attention."""
        if self.family.scale is None:
            return float(self.kv_shape.head_size**-0.5)
        name, power = self.family.scale
        return float(getattr(self.config, name) ** power)

    @property
    def cap(self) -> float | None:
        """The cap of attention logits."""
        return self._value(self.family.cap)

    @cached_property
    def windows(self) -> list[int | None]:
        """The attention window of each layer, None where it sees everything."""
        return windows_of(self.config, self.family)

    @property
    def input_scale(self) -> float:
        """What the decoder multiplies its inputs_embeds by."""
        if self.family.input_scale != "sqrt":
            return float(self._value(self.family.input_scale) or 1.0)
        embedding = self.causal_lm.get_input_embeddings()
        if any(hasattr(module, "embed_scale") for module in embedding.modules()):
            return 1.0
        return float(torch.tensor(self.config.hidden_size**0.5, dtype=embedding.weight.dtype))  # rounded as inside

    def _value(self, name: str) -> Any:
        """A value of the config that the family's row names; None for an empty name."""
        return getattr(self.config, name) if name else None

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as the decoder takes them; it may scale them itself (`input_scale`)."""
        return self.causal_lm.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the next token."""
        logits = self.causal_lm.get_output_embeddings()(hidden)
        if self.family.divisor:
            logits = logits / self._value(self.family.divisor)
        return soft_cap(logits, self._value(self.family.logit_cap))

    def output_head(self) -> Head:
        """The head as cross-entropy takes it. Once for all its pieces: trained rows are written into a copy of the weights."""
        layer, divisor = self.causal_lm.get_output_embeddings(), self._value(self.family.divisor) or 1.0
        weight = matrix_of(layer)
        cap = self._value(self.family.logit_cap)
        return Head(self.config.vocab_size, weight, layer if weight is None else None, divisor, cap)

    def run(
        self,
        embeds: Tensor,
        positions: Tensor,
        attends: Attends,
        prefix: KV | None = None,
        all_layers: bool = False,
        joined: bool = False,
    ) -> Pass:
        """Runs embeds [B, T, E] at `positions`, under a bool mask [B, 1, T, P + T] or by branches; gradients reach the
        prefix. all_layers, joined: also give these fields of `Pass`."""
        branches = as_branches(attends)
        by_window = {
            width: tuple(branch.within(width, embeds.device) for branch in branches) for width in {*self.windows}
        }
        call = Call([by_window[width] for width in self.windows], prefix, joined={} if joined else None)
        mask = attends if isinstance(attends, Tensor) else embeds.new_ones(1, 1, 1, 1, dtype=torch.bool)  # not read
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
        order = range(self.kv_shape.num_layers)
        if lacking := [str(layer) for layer in order if layer not in call.keys]:
            raise ModelError(
                f"{self.family.name}: layers {', '.join(lacking)} keep no keys and values",
                "choose a model of another family",
            )
        queries, keys, values = ([part[i] for i in order] for part in (call.queries, call.keys, call.values))
        layers = tuple(out.hidden_states[1:]) if all_layers else None
        longer = None if call.joined is None else [call.joined[i] for i in order]
        return Pass(out.last_hidden_state, queries, keys, values, layers, longer)

    def run_text(self, ids: Tensor, mask: Tensor, all_layers: bool = False) -> Pass:
        """A causal pass over ids [B, T] with padding at the end."""
        attends: Attends = causal_mask(mask) if self.dense_attention else (text(mask.shape[1]),)
        return self.run(self.embed(ids), positions_of(mask), attends, all_layers=all_layers)

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by name, as saved in a student's folder."""
        return {plain_name(name): weight for name, weight in self.named_parameters() if weight.requires_grad}


def matrix_of(layer: Any) -> Tensor | None:
    """The weights of a head that multiplies by them and does nothing else; None where it has a bias or adapters of its own,
    is quantised or sharded."""
    has_trained_rows = hasattr(layer, "token_adapter")
    if not has_trained_rows and (type(layer) is not nn.Linear or layer.bias is not None):
        return None
    weight = layer.weight
    return weight if type(weight) in (Tensor, nn.Parameter) else None


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
        if self.latent.method == "sequential":
            return unroll(self.as_input(hidden[:, :1]), run, self.as_input, self.latent.num_tokens)
        return iterate(start(hidden, self.as_input), run, self.as_input, self.latent.num_iterations - 1)

    def as_input(self, hidden: Tensor) -> Tensor:
        """prj(hidden) as an input embedding; where the decoder scales its inputs, its first layer still reads prj(hidden)."""
        embeds, scale = self.project(hidden).to(hidden.dtype), self.input_scale
        return embeds if scale == 1 else embeds / scale
