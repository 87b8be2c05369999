"""How much of the KV loss comes from keys, from values, and from each layer of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kava.objective.records import Figure

Place = tuple[str, int]  # k or v (z for codes), and the compared layer


def kv_shares(parts: Mapping[Place, Tensor]) -> dict[str, Figure]:
    """kv_share_k, kv_share_v and kv_share_k_0, ...: of the weighted sums of the KV term, which together are 1.

    A scale that lets one layer's constants be the whole loss shows here, while the loss falls as it should.
    """
    if len(parts) < 2:
        return {}
    whole = torch.stack(list(parts.values())).sum()
    shares = {f"kv_share_{kind}_{layer}": total for (kind, layer), total in parts.items()}
    if len(kinds := dict.fromkeys(kind for kind, _ in parts)) > 1:
        of_kind = {
            name: torch.stack([total for (kind, _), total in parts.items() if kind == name]).sum() for name in kinds
        }
        shares = {f"kv_share_{kind}": total for kind, total in of_kind.items()} | shares
    return {name: Figure(total, whole) for name, total in shares.items()}
