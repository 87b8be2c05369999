"""Grouped heads without repeated keys are what repeated keys give, in values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kava.backbone.attention import by_group, capped_weights, grouped_attention

SIZES = {"groups of 2": (4, 2), "one group": (4, 1), "no groups": (3, 3)}


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, cap: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1) @ value


@pytest.mark.parametrize("heads", SIZES)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_grouped_heads_are_repeated_heads(heads: str, tokens: int, cap: float | None) -> None:
    number, groups = SIZES[heads]
    torch.manual_seed(0)
    shapes = ((2, number, tokens, 6), (2, groups, 7, 6), (2, groups, 7, 6))
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    mask = torch.rand(2, 1, tokens, 7) < 0.6
    mask[..., 0] = True
    query, key, value = parts
    if cap is None:
        out = grouped_attention(query, key, value, mask)
    else:
        weights = capped_weights(query, key, mask, 6**-0.5, cap)
        out = (by_group(weights, key) @ value).view_as(query)
    wanted = plain(query, key, value, mask, cap)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    toward = torch.randn_like(out)
    pairs = zip(*(torch.autograd.grad(each, parts, toward) for each in (out, wanted)), strict=True)
    for gradient, plain_gradient in pairs:
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-9, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation gives."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("tokens", [1, 5])
def test_keys_are_not_repeated_for_the_queries_of_a_group(tokens: int) -> None:
    query, key, value = torch.randn(2, 8, tokens, 4), torch.randn(2, 2, 90, 4), torch.randn(2, 2, 90, 4)
    mask = torch.ones(2, 1, tokens, 90, dtype=torch.bool)
    with LargestTensor() as largest:
        grouped_attention(query, key, value, mask)
    assert largest.numel < 2 * key.numel()
