"""Terms beside cross-entropy and KV that a recipe switches on: CODI, CKA, attention maps. One class each.

A term has `count(batch, mask)`, what its sum is divided by, `weight(step)`, and the sum itself by a call.
"""

import torch
from torch import Tensor, nn

from kava.align import flatten_heads, layer_map, mix
from kava.align.layers import Entry
from kava.compress import importance
from kava.config import LossConfig, ProjectorConfig, Recipe
from kava.errors import ConfigError
from kava.losses import codi_loss
from kava.losses.cka import cka
from kava.objective.ramps import ramp_value
from kava.objective.records import Batch, Step, StudentView
from kava.objective.targets import Target
from kava.teachers.base import KVShape

ATTENTION_SHARE = 0.5  # structural: weight of the attention maps beside the two cosines


class AuxTerm(nn.Module):
    """(batch, student, target) -> the sum of one term."""

    needs_importance = False
    constant: float  # the weight that does not change during a run

    def count(self, batch: Batch, mask: Tensor) -> float:
        """What the sum is divided by; mask [B, N] the compared columns."""
        raise NotImplementedError

    def weight(self, step: Step) -> float:
        return self.constant

    def forward(self, batch: Batch, student: StudentView, target: Target) -> Tensor:
        raise NotImplementedError


class CodiTerm(AuxTerm):
    """Hidden states at the last cue token, layer by layer, in the teacher's width; `layers` None: layer l with layer l."""

    def __init__(
        self,
        loss: LossConfig,
        student: KVShape,
        teacher: KVShape,
        layers: list[Entry] | None = None,
        settings: ProjectorConfig | None = None,
    ):
        super().__init__()
        self.loss, self.layers, self.constant = loss, layers, loss.alpha1_codi
        self.numbers = student.num_layers * teacher.hidden_size
        self.project: nn.Linear | None = None
        if student.hidden_size != teacher.hidden_size:
            if settings is None or settings.direction == "none" or not settings.trainable:
                raise ConfigError(
                    f"loss.alpha1_codi compares hidden states, but the student is {student.hidden_size} wide and the "
                    f"teacher {teacher.hidden_size}, and no map between them is trained",
                    "set loss.alpha1_codi=0, or a projector.direction",
                )
            self.project = nn.Linear(student.hidden_size, teacher.hidden_size)

    def count(self, batch: Batch, mask: Tensor) -> float:
        return float(len(mask) * self.numbers)

    def forward(self, batch: Batch, student: StudentView, target: Target) -> Tensor:
        states, wanted, loss = student.cue, target.kv.cue, self.loss
        assert states is not None
        assert wanted is not None
        if self.project is not None:
            states = self.project(states.to(self.project.weight.dtype))
        if self.layers is not None:
            each = list(wanted.unbind(1))
            wanted = torch.stack([mix(each, entry) for entry in self.layers], dim=1)
        return codi_loss(states, wanted, loss.codi_loss_type, loss.layerwise_std, loss.std_scope)


class CkaTerm(AuxTerm):
    """sum_b sum_l 1 - CKA of keys, over samples with more than one compared column."""

    def __init__(self, recipe: Recipe, layers: list[Entry]):
        super().__init__()
        self.constant, self.layers = recipe.explicit.cka_weight, layers
        self.compared = cka_layers(recipe.explicit.cka_layers, len(layers))

    def count(self, batch: Batch, mask: Tensor) -> float:
        return float((mask.sum(1) > 1).sum()) * len(self.compared)

    def forward(self, batch: Batch, student: StudentView, target: Target) -> Tensor:
        total = student.keys[0].new_zeros((), dtype=torch.float32)
        for layer in self.compared:
            own, other = student.keys[layer], mix(target.kv.keys, self.layers[layer])
            similarity = cka(flatten_heads(own), flatten_heads(other), target.mask)
            total = total + (1 - similarity)[target.mask.sum(1) > 1].sum()
        return total


def cka_layers(names: str, count: int) -> list[int]:
    """Layer numbers of middle, last, or "0,3,5"."""
    if names in ("middle", "last"):
        return [count // 2 if names == "middle" else count - 1]
    words = [word.strip() for word in names.split(",")]
    if not all(word.isdigit() and int(word) < count for word in words):
        raise ConfigError(
            f"explicit.cka_layers is {names!r}; the student has layers 0 to {count - 1}",
            "write middle, last, or numbers with commas between them",
        )
    return [int(word) for word in words]


class AttentionTerm(AuxTerm):
    """sum KL(teacher || student) of the answer's attention to the compared columns, heads averaged."""

    needs_importance = True

    def __init__(self, recipe: Recipe, layers: list[Entry], scale: float, cap: float | None):
        super().__init__()
        self.explicit, self.layers, self.scale, self.cap = recipe.explicit, layers, scale, cap
        structural = recipe.loss.kv_loss_type == "structural"
        self.constant = ATTENTION_SHARE * recipe.loss.alpha2_kv if structural else 0.0

    def count(self, batch: Batch, mask: Tensor) -> float:
        return float(mask.any(1).sum()) * len(self.layers)

    def weight(self, step: Step) -> float:
        return self.constant + self.explicit.gamma_kl * ramp_value(step.progress, self.explicit.gamma_ramp)

    def forward(self, batch: Batch, student: StudentView, target: Target) -> Tensor:
        text, wanted = student.text, target.kv.importance
        assert text is not None
        assert wanted is not None
        total = student.keys[0].new_zeros((), dtype=torch.float32)
        for query, key, entry in zip(text.queries("tail"), student.keys, self.layers, strict=True):
            weights = importance(query, key, batch["tail_answer"], batch["cot_mask"], self.scale, self.cap)
            own, other = (_shares(part, target.mask).mean(1) for part in (weights, mix(wanted, entry)))
            real = target.mask & (other > 0)
            ratio = other.clamp(min=1e-12).log() - own.clamp(min=1e-12).log()
            total = total + (other * ratio).masked_fill(~real, 0.0).sum()
        return total


def _shares(weights: Tensor, mask: Tensor) -> Tensor:
    """[B, H, N] attention with a sum of 1 over the columns of mask [B, N]: the rest of it may be elsewhere."""
    weights = weights.masked_fill(~mask[:, None], 0.0)
    total = weights.sum(2, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def make_aux_terms(
    recipe: Recipe, student: KVShape, teacher: KVShape, scale: float, cap: float | None, mixture: bool
) -> dict[str, AuxTerm]:
    """The terms that a recipe of the explicit line switches on, by name."""
    layers: list[Entry] = layer_map(student.num_layers, teacher.num_layers, recipe.explicit.layer_map)
    if mixture:  # aligned to the student's layers already
        layers = [[(layer, 1.0)] for layer in range(student.num_layers)]
    terms: dict[str, AuxTerm] = {}
    if recipe.loss.alpha1_codi > 0:
        terms["codi"] = CodiTerm(recipe.loss, student, teacher, layers, recipe.projector)
    if recipe.explicit.cka_weight > 0:
        terms["cka"] = CkaTerm(recipe, layers)
    if recipe.loss.alpha2_kv > 0 and (recipe.loss.kv_loss_type == "structural" or recipe.explicit.gamma_kl > 0):
        terms["attention"] = AttentionTerm(recipe, layers, scale, cap)
    return terms
