"""A planted truth: of three teachers one knows the answer, another one for every class of input, the others give noise.

A student learns keys from what the fusion makes of the three. Nobody tells the router which teacher knows: it has to
find out from the student's distance alone, and is judged on inputs it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from kava.config.fields import ROUTERS
from kava.fuse import Collapse, Fixed, Fusion, Learnable, Query, Window, fuse
from kava.losses import kv_loss
from kava.losses.entropy import entropy_term

S, L, H, D, N, E = 3, 2, 2, 4, 3, 24  # E: width of an input
STEPS, BATCH = 150, 64


@dataclass
class World:
    """Inputs [B, N, E] of a known class; what is true of them [L][B, H, N, D]; and three teachers' word for it."""

    by_layer: bool = False
    by_token: bool = False
    always_first: bool = False  # the first teacher knows everything
    dull_last: bool = False  # the last one says the same of everything
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.common = self.draw(E) * 2  # hidden states share a large mean
        self.centres = self.draw(S, E) * 1.5
        self.maps = self.draw(L, E, H * D) / E**0.5

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def batch(self, size: int) -> tuple[Tensor, Tensor, list[Tensor], list[list[Tensor]]]:
        """inputs, the teacher who knows [B, L, N], truth per layer, teachers' entries [layer][teacher]."""
        kinds = torch.randint(S, (size, N if self.by_token else 1), generator=self.generator).expand(-1, N)
        inputs = self.common + self.centres[kinds] + self.draw(size, N, E)
        shift = torch.arange(L) if self.by_layer else torch.zeros(L, dtype=torch.long)
        knows = (kinds[:, None] + shift[:, None]) % S * (not self.always_first)
        truth, said = [], []
        for layer in range(L):
            right = torch.tanh(inputs @ self.maps[layer]).unflatten(-1, (H, D)).transpose(1, 2)  # [B, H, N, D]
            here = [(knows[:, layer] == teacher)[:, None, :, None] for teacher in range(S)]
            truth.append(right)
            said.append([torch.where(one, right, self.draw(*right.shape)) for one in here])
            if self.dull_last:
                said[-1][-1] = torch.zeros_like(right)
        return inputs, knows, truth, said


@dataclass
class Outcome:
    fusion: Fusion
    found: float  # share of held-out places where the heaviest teacher is the one who knows
    to_fused: float  # held-out distance to what the fusion makes
    to_truth: float
    window: Window


def query_of(inputs: Tensor) -> Query:
    return Query(hidden=inputs.mean(1), tokens=inputs)


def losses(student: nn.Module, inputs: Tensor, targets: list[Tensor]) -> Tensor:
    given = student(inputs).unflatten(-1, (L, H, D)).permute(2, 0, 3, 1, 4)
    kept = torch.ones(given.shape[1:4], dtype=torch.bool)
    parts = [kv_loss(mine, aim, kept, "mse", False, detach=False) for mine, aim in zip(given, targets, strict=True)]
    return torch.stack(parts).sum() / given.numel()


def targets_of(weights: Tensor, said: list[list[Tensor]]) -> list[Tensor]:
    rows = weights.expand(-1, L, -1, -1).unbind(1)
    return [fuse(parts, row) for parts, row in zip(said, rows, strict=True)]


def learn(fusion: Fusion, push: str = "none", strength: float = 0.0, steps: int = STEPS, **where: bool) -> Outcome:
    world = World(**where)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(E, 64), nn.ReLU(), nn.Linear(64, L * H * D))
    optimizer = torch.optim.AdamW([*student.parameters(), *fusion.parameters()], lr=5e-3)
    fusion.train()
    for _ in range(steps):
        inputs, _, _, said = world.batch(BATCH)
        weights = fusion(query_of(inputs))
        loss = losses(student, inputs, targets_of(weights, said))
        if push != "none":
            loss = loss + strength * entropy_term(weights, push) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judged(fusion.eval(), student, world)


@torch.no_grad()
def judged(fusion: Fusion, student: nn.Module, world: World) -> Outcome:
    inputs, knows, truth, said = world.batch(512)
    weights = fusion(query_of(inputs))
    meter = Collapse(alarm=0.95)
    meter.add(weights)
    window = meter.close()
    assert window is not None
    found = (weights.argmax(-1) == knows).float().mean()
    fused = losses(student, inputs, targets_of(weights, said))
    return Outcome(fusion, float(found), float(fused), float(losses(student, inputs, truth)), window)


@cache
def fixed(by_layer: bool = False, by_token: bool = False) -> Outcome:
    return learn(Fixed([1 / S] * S), by_layer=by_layer, by_token=by_token)


def router(kind: str, layers: int = 1, per_token: bool = False) -> Learnable:
    torch.manual_seed(0)
    return Learnable(E, S, kind, layers, per_token)


@pytest.mark.parametrize("kind", ROUTERS)
def test_the_router_finds_who_knows(kind: str) -> None:
    out, base = learn(router(kind)), fixed()
    assert out.found > 0.9
    assert out.to_fused < 0.7 * base.to_fused
    assert out.to_truth < 0.7 * base.to_truth
    assert out.window.collapsed is None
    assert out.window.unused == []


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("where", [{"by_layer": True}, {"by_token": True}], ids=["by_layer", "by_token"])
def test_another_teacher_for_each_layer_or_token(kind: str, where: dict[str, bool]) -> None:
    by_layer, by_token = where.get("by_layer", False), where.get("by_token", False)
    out, base = learn(router(kind, L if by_layer else 1, by_token), **where), fixed(by_layer, by_token)
    assert out.found > 0.9
    assert out.to_truth < 0.7 * base.to_truth


@pytest.mark.parametrize("kind", ROUTERS)
def test_specialized_without_a_limit_collapses_and_the_alarm_sounds(kind: str) -> None:
    """Pushed hard before it knows anything, a router settles on one teacher for all: low entropy is not knowledge."""
    out = learn(router(kind), "specialized", 4.0)
    assert out.window.collapsed is not None
    assert len(out.window.unused) == S - 1
    assert out.found < 0.5
    assert out.to_truth > fixed().to_truth


def test_specialized_with_a_small_weight_does_not() -> None:
    out = learn(router("mlp"), "specialized", 0.01)
    assert out.window.collapsed is None
    assert out.found > 0.9


def test_diverse_does_not_collapse_where_one_teacher_is_always_best() -> None:
    plain, pushed = (learn(router("mlp"), push, 0.3, always_first=True) for push in ("none", "diverse"))
    assert plain.window.collapsed == 0  # rightly here; the alarm asks to look, it does not judge
    assert pushed.window.collapsed is None
    assert pushed.window.unused == []
    assert pushed.window.entropy > 0.5 > plain.window.entropy
    assert pushed.found > 0.9  # the best teacher still weighs most


def test_a_router_goes_to_whoever_is_easiest_to_follow() -> None:
    """A limit to know of: it is judged by the student's distance alone, and nobody is nearer than who says nothing.

    Noise is hard to follow and knowledge is not, which is what the tests above plant. The alarm is what is left here, and
    in a mixture with trained adapters the guard, which makes every teacher vary as much as the student does.
    """
    out = learn(router("mlp"), dull_last=True)
    assert out.window.collapsed == S - 1
    assert out.to_truth > 2 * learn(router("mlp")).to_truth
