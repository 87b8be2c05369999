"""The letters of tensor shapes, the same in every file of the package.

B batch   T tokens   N chain-of-thought tokens   A answer-part tokens (cue, answer, eos)   M latents, or kept entries
L layers  H key/value heads   R query heads per key/value head   D head size   E model width   V vocabulary   S teachers

Masks are bool and True means "real". Keys and values are [B, H, T, D], after the rotary embedding, as a cache holds them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(tensor: "Tensor") -> "Tensor":
    """The tensor in float32 or better: softmaxes, norms and losses are not computed in half precision."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def soft_cap(logits: "Tensor", cap: float | None) -> "Tensor":
    """cap tanh(logits / cap), as Gemma limits its logits; unchanged without a cap."""
    return logits if cap is None else (logits / cap).tanh() * cap
