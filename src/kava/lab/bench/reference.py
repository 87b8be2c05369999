"""References of the benchmarks: random models of any size, the library's own generation, and eager attention that keeps
its logits and probabilities, as older code does."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kava.backbone.attention import NAME, Call
from kava.backbone.families import FAMILIES
from kava.backbone.model import LatentModel
from kava.backbone.tokens import SpecialTokens
from kava.config import LatentConfig
from kava.data.encode import Encoded
from kava.errors import ConfigError

EAGER = "kava_eager"
CUE = 4  # tokens of the cue


def random_model(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    latent: LatentConfig,
    family: str = "llama",
    std: float = 0.02,
    seed: int = 0,
    inner: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> LatentModel:
    """A LatentModel around an untrained model of a family; its last three tokens are the special ones.

    std: the weights' standard deviation; with the usual 0.02 a small model's attention is nearly uniform. inner: the
    width inside an MLP, by default 4 times the model's.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        initializer_range=std,
        tie_word_embeddings=True,
        use_cache=False,
    )
    lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.set_attn_implementation(NAME)
    special = SpecialTokens(vocabulary - 3, vocabulary - 2, vocabulary - 1)
    return LatentModel(lm, FAMILIES[family], special, latent, use_projection=True)


@dataclass(frozen=True)
class ModelSizes:
    """The random Llama that `kava bench train` and `kava bench extract` time, and the examples that it reads.

    vocabulary: with 12,000 the output head is the share of the model that it is in Llama-3.2-1B.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    question: int
    cot: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.width // self.heads % 2:
            raise ConfigError(
                f"width {self.width}, heads {self.heads} and kv_heads {self.kv_heads} do not fit",
                "width must be an even multiple of heads, and heads a multiple of kv_heads",
            )

    def model(self, latent: LatentConfig) -> LatentModel:
        return random_model(self.layers, self.width, self.heads, self.kv_heads, self.vocabulary, latent)

    def examples(self, count: int, answer: int) -> list[Encoded]:
        """Random ids, all examples of one length: no pass has padding to skip."""
        generator = torch.Generator().manual_seed(0)

        def draw(length: int) -> list[int]:
            return torch.randint(0, self.vocabulary - 3, (length,), generator=generator).tolist()

        cue = draw(CUE)
        no_results = [False] * self.cot
        return [
            Encoded(f"bench/{i}", draw(self.question), draw(self.cot), no_results, cue, draw(answer), 0)
            for i in range(count)
        ]


def library_twin(model: LatentModel) -> Any:
    """A plain model of transformers that shares the same weights and uses the library's own attention and cache."""
    lm = model.causal_lm
    shared = {id(part): part for part in (*lm.parameters(), *lm.buffers())}
    twin = copy.deepcopy(lm, shared)
    twin.set_attn_implementation("sdpa" if model.cap is None else "eager")  # the library's sdpa caps no logits
    twin.config.use_cache = True
    return twin.eval()


@torch.inference_mode()
def library_generate(twin: Any, ids: Tensor, mask: Tensor, eos: int, limit: int) -> list[list[int]]:
    """The tokens that `generate` of transformers adds to each row, greedily, eos included; ids, mask [B, T].

    The checkpoint's own generation settings (sampling, penalties, other end tokens) are ignored.
    """
    twin.generation_config = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=eos, pad_token_id=eos, use_cache=True
    )
    order = mask.to(torch.int8).argsort(dim=1, stable=True)  # padding to the left, as the library wants it
    out = twin.generate(ids.gather(1, order), attention_mask=mask.gather(1, order).long())
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@contextmanager
def eager_attention(model: LatentModel) -> Iterator[list[Tensor]]:
    """Inside the block the model attends by softmax(q k^T) v with every matrix materialized, which transformers calls eager.

    Yields the logits [B, H*R, T, T] of every layer, in the order of the calls. A KV prefix is not read.
    """
    kept: list[Tensor] = []
    probabilities: list[Tensor] = []  # held until the end of the block, as older code does

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kava_call: Call, scaling: float,
               **_: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
        layer = module.layer_idx
        kava_call.queries[layer], kava_call.keys[layer], kava_call.values[layer] = query, key, value
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        logits = query @ key.transpose(2, 3) * scaling
        kept.append(logits.masked_fill(~mask, torch.finfo(logits.dtype).min))
        probabilities.append(torch.softmax(kept[-1], dim=-1, dtype=torch.float32).to(query.dtype))
        return (probabilities[-1] @ value).transpose(1, 2).contiguous(), probabilities[-1]

    AttentionInterface.register(EAGER, attend)
    model.causal_lm.set_attn_implementation(EAGER)
    model.dense_attention = True  # the decoder's mask is read
    try:
        yield kept
    finally:
        model.dense_attention = False
        model.causal_lm.set_attn_implementation(NAME)


AttentionMaskInterface.register(EAGER, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
