"""Distances of the KV term: one class each. A recipe names them in `loss.kv_loss_type`, or as package.module:Name."""

from dataclasses import dataclass, fields

from torch import Tensor

from kava.config import LossConfig
from kava.losses import kv_loss
from kava.losses.direction import direction_loss
from kava.losses.zspace import LEAST, z_loss
from kava.objective.compare import KVComparison
from kava.registry import lookup


@dataclass(frozen=True)
class Distance:
    """(comparison, detach) -> its sum of distances; `count` says over how many numbers that sum goes.

    A variant is a frozen dataclass; fields named as keys of the recipe's section `loss` get their values from there.
    `detach` False: the target is a projection that is trained, too, and must get its gradient.
    """

    def __call__(self, pair: KVComparison, detach: bool = True) -> Tensor:
        raise NotImplementedError

    def count(self, pairs: Tensor, heads: int, size: int) -> float:
        """How much a layer and kind counts; pairs [B] compared entries of a head, `size` numbers in each."""
        raise NotImplementedError


@dataclass(frozen=True)
class ByNumber(Distance):
    """smooth_l1, mse, l1: every number counts, divided by the target's standard deviation."""

    kv_loss_type: str = "smooth_l1"
    layerwise_std: bool = True
    std_scope: str = "sample"

    def __call__(self, pair: KVComparison, detach: bool = True) -> Tensor:
        kind, std, scope = self.kv_loss_type, self.layerwise_std, self.std_scope
        return kv_loss(pair.student, pair.target, pair.kept, kind, std, scope, pair.weight, detach)

    def count(self, pairs: Tensor, heads: int, size: int) -> float:
        return float(pairs.sum()) * heads * size


@dataclass(frozen=True)
class ByDirection(Distance):
    """cosine, mercator, hybrid: an entry counts 1, however many numbers it has."""

    kv_loss_type: str = "cosine"

    def __call__(self, pair: KVComparison, detach: bool = True) -> Tensor:
        kind = "cosine" if self.kv_loss_type == "structural" else self.kv_loss_type
        return direction_loss(pair.student, pair.target, pair.kept, kind, detach=detach, weight=pair.weight)[0]

    def count(self, pairs: Tensor, heads: int, size: int) -> float:
        return float(pairs.sum()) * heads


@dataclass(frozen=True)
class OfCodes(Distance):
    """Trained codes of both sides (`mixture.z_loss`): a sample counts 1; the gradient goes into both sides."""

    z_loss: str = "mse"

    def __call__(self, pair: KVComparison, detach: bool = True) -> Tensor:
        return z_loss(pair.student[:, 0], pair.target[:, 0], pair.kept[:, 0], self.z_loss)

    def count(self, pairs: Tensor, heads: int, size: int) -> float:
        return float((pairs >= LEAST[self.z_loss]).sum())


DISTANCES: dict[str, type[Distance]] = {
    **dict.fromkeys(("smooth_l1", "mse", "l1"), ByNumber),
    **dict.fromkeys(("cosine", "mercator", "hybrid", "structural"), ByDirection),
}


def make_distance(loss: LossConfig) -> Distance:
    """The distance that a recipe names, of keys and values."""
    kind = lookup(DISTANCES, loss.kv_loss_type, "distance")
    loss = loss.model_copy(update={"layerwise_std": loss.scale_of_kv == "layer"})
    return kind(**{field.name: getattr(loss, field.name) for field in fields(kind) if hasattr(loss, field.name)})
