"""Random students at the shapes of real models, and batches for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbone.lora import add_lora
from kava.backbone.model import LatentModel
from kava.compress import make_compressor
from kava.config import LatentConfig, LoraConfig, LossConfig
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.lab.bench.gpu.items import KitSetup
from kava.lab.bench.reference import random_model
from kava.losses import add
from kava.objective.make import latent_objective
from kava.objective.objective import Objective

UNEVEN = ((40, 30, 3), (12, 25, 2), (33, 0, 4), (25, 5, 1))  # tokens of question, chain of thought and answer


@dataclass(frozen=True)
class StudentShape:
    """The sizes of a model's config. `inner`: the width inside an MLP."""

    family: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    def student(self, setup: KitSetup, latent: LatentConfig, dtype: torch.dtype, std: float = 0.02) -> LatentModel:
        """A random student, made on the device."""
        sizes = (self.layers, self.width, self.heads, self.kv_heads, self.vocabulary)
        with setup.device:
            return random_model(*sizes, latent, self.family, std, inner=self.inner, dtype=dtype)


LLAMA_1B = StudentShape("llama", 16, 2048, 8192, 32, 8, 128_256)  # Llama-3.2-1B
QWEN_05B = StudentShape("qwen2", 24, 896, 4864, 14, 2, 151_936)  # Qwen2.5-0.5B
MEDIUM = StudentShape("llama", 6, 512, 2048, 8, 4, 12_000)
SMALL = StudentShape("llama", 3, 128, 256, 4, 2, 256)
TOY = StudentShape("llama", 2, 32, 64, 4, 2, 64)


def with_lora(model: LatentModel) -> LatentModel:
    """The same student with the paper's adapters, without dropout."""
    model.backbone = add_lora(model.causal_lm, model.family, model.special, LoraConfig(dropout=0.0))
    return model


def uneven_batch(device: torch.device, vocabulary: int) -> dict[str, Tensor]:
    """Random texts of very different lengths, one without a chain of thought."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(0, vocabulary - 3, (count,), generator=generator).tolist()

    cue = draw(3)
    examples = [
        Encoded(str(row), draw(question), draw(cot), [False] * cot, cue, draw(answer), 0)
        for row, (question, cot, answer) in enumerate(UNEVEN)
    ]
    return {name: value.to(device) for name, value in Collator(0)(examples).items()}


def objective_of(model: LatentModel, packed: bool = True) -> Objective:
    """The paper's loss, with targets that are kept by place: R-KV's choice may change with the last digit of a score."""
    return latent_objective(model, LossConfig(), make_compressor("uniform"), packed)


@dataclass(frozen=True)
class MeasuredLoss:
    """Each term's mean, and the gradient of the weighted loss by parameter, in float32 on the CPU."""

    terms: dict[str, float]
    gradients: dict[str, Tensor]

    def term_gap(self, other: "MeasuredLoss") -> float:
        """The largest difference of a term, in proportion to it."""
        return max(abs(self.terms[name] - value) / max(1.0, abs(value)) for name, value in other.terms.items())

    def gradient_gap(self, other: "MeasuredLoss") -> float:
        """The norm of the difference of all gradients, in proportion to their norm."""
        pairs = [(self.gradients[name], gradient) for name, gradient in other.gradients.items()]
        gap = sum(float((own - gradient).double().square().sum()) for own, gradient in pairs)
        return float((gap / sum(float(gradient.double().square().sum()) for _, gradient in pairs)) ** 0.5)


def measured_loss(objective: Objective, batch: dict[str, Tensor], autocast: torch.dtype | None = None) -> MeasuredLoss:
    """The loss of a batch; `autocast`: the type that matrix products are computed in."""
    device = objective.model.device
    objective.zero_grad(set_to_none=True)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        terms = objective(batch).terms
    add(terms).backward()
    gradients = {
        name: weight.grad.float().cpu() for name, weight in objective.named_parameters() if weight.grad is not None
    }
    objective.zero_grad(set_to_none=True)
    return MeasuredLoss({term.name: float(term.value().detach()) for term in terms}, gradients)
