"""Jacobi and sequential latents against loops on a toy causal map, values and gradients."""

from __future__ import annotations

import oracle_latents as slow
import pytest
import torch
from torch import Tensor, nn

from kava.latents import Projection, iterate, make_projection, residual, start, unroll

SLOTS, WIDTH, BATCH = 5, 3, 2


class Toy:
    """h_i = tanh(sum_{j <= i} mix[i, j] W e_j); prj(h) = tanh(P h); every parameter wants a gradient."""

    def __init__(self, slots: int = SLOTS) -> None:
        draw = torch.Generator().manual_seed(3)
        self.mix = torch.randn(slots, slots, generator=draw, dtype=torch.float64).tril().requires_grad_()
        self.weight = torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
        self.back = torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
        self.embeds = torch.randn(BATCH, slots, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
        self.calls = 0

    def run(self, embeds: Tensor) -> Tensor:
        self.calls += 1
        mix = self.mix.tril()[: embeds.shape[1], : embeds.shape[1]]
        return torch.tanh(torch.einsum("ij,bje,fe->bif", mix, embeds, self.weight))

    def project(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden @ self.back.T)

    def lists(self) -> tuple[list, list, list]:
        return self.mix.tolist(), self.weight.tolist(), self.back.tolist()

    def gradients(self, out: Tensor) -> list[Tensor]:
        towards = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).cos()
        leaves = [self.mix, self.weight, self.back, self.embeds]
        found = torch.autograd.grad((out * towards).sum(), leaves, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


def close(actual: Tensor, expected: object, tolerance: float = 1e-9) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, wanted.reshape(actual.shape), rtol=0.0, atol=tolerance)


def test_start_takes_each_left_neighbour() -> None:
    """e_1 from <bot>, e_i from latent i - 1; what the last latent says is not used."""
    toy = Toy()
    hidden = torch.randn(BATCH, 1 + SLOTS, WIDTH, dtype=torch.float64)
    expected = [[slow.project(row[i], toy.back.tolist()) for i in range(SLOTS)] for row in hidden.tolist()]
    close(start(hidden, toy.project), expected)


@pytest.mark.parametrize("rounds", range(SLOTS + 2))
def test_iterate(rounds: int) -> None:
    toy = Toy()
    expected = [slow.jacobi(row, rounds, *toy.lists()) for row in toy.embeds.tolist()]
    close(iterate(toy.embeds, toy.run, toy.project, rounds), expected)
    assert toy.calls == rounds  # one pass a round, none for an update that nobody uses


def test_unroll() -> None:
    toy = Toy()
    expected = [slow.sequential(row[0], SLOTS, *toy.lists()) for row in toy.embeds.tolist()]
    close(unroll(toy.embeds[:, :1], toy.run, toy.project, SLOTS), expected)
    assert toy.calls == SLOTS - 1


@pytest.mark.parametrize("rounds", range(SLOTS + 2))
def test_after_t_rounds_the_first_t_latents_are_exact(rounds: int) -> None:
    """t updates fix the first t + 1 inputs, so round t sees its first t slots exact; the next is not."""
    toy = Toy()
    exact = unroll(toy.embeds[:, :1], toy.run, toy.project, SLOTS)
    made = iterate(toy.embeds, toy.run, toy.project, rounds)
    close(made[:, : rounds + 1], exact[:, : rounds + 1])
    if rounds + 1 < SLOTS:
        assert (made[:, rounds + 1] - exact[:, rounds + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("rounds", [SLOTS - 1, SLOTS, SLOTS + 3])
def test_enough_rounds_give_the_sequential_gradient(rounds: int) -> None:
    toy = Toy()
    exact = toy.gradients(unroll(toy.embeds[:, :1], toy.run, toy.project, SLOTS))
    made = toy.gradients(iterate(toy.embeds, toy.run, toy.project, rounds))
    for mine, theirs in zip(made, exact, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_gradients_run_through_every_round(rounds: int) -> None:
    """Finite differences of the slow loops, for the start embeddings and the projection."""
    toy = Toy(slots=4)
    analytic = toy.gradients(iterate(toy.embeds, toy.run, toy.project, rounds))
    step = 1e-6
    for leaf, gradient in ((toy.embeds, analytic[3]), (toy.back, analytic[2])):
        flat = leaf.detach().reshape(-1)
        for i in range(0, flat.numel(), 2):
            sides = []
            for sign in (step, -step):
                with torch.no_grad():
                    flat[i] += sign
                    sides.append(_objective([slow.jacobi(row, rounds, *toy.lists()) for row in toy.embeds.tolist()]))
                    flat[i] -= sign
            assert abs((sides[0] - sides[1]) / (2 * step) - gradient.reshape(-1)[i].item()) < 1e-7


def _objective(embeds: list) -> float:
    out = torch.tensor(embeds, dtype=torch.float64)
    return float((out * torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).cos()).sum())


@pytest.mark.parametrize("slots", [0, 1])
def test_no_latent_or_one(slots: int) -> None:
    """One latent is e_1 whatever T; none is an empty block, in both ways of making them."""
    toy = Toy(slots=max(slots, 1))
    embeds = toy.embeds[:, :slots]
    assert iterate(embeds, toy.run, toy.project, 3).shape == (BATCH, slots, WIDTH)
    assert unroll(toy.embeds[:, :1], toy.run, toy.project, slots).shape == (BATCH, slots, WIDTH)
    if slots:
        close(iterate(embeds, toy.run, toy.project, 3), embeds.detach())


def test_residual_is_what_the_last_round_changed() -> None:
    toy = Toy()
    before = iterate(toy.embeds, toy.run, toy.project, 1)
    after = iterate(toy.embeds, toy.run, toy.project, 2)
    flat = [(a, b) for a, b in zip(before.reshape(-1).tolist(), after.reshape(-1).tolist(), strict=True)]
    expected = (sum((b - a) ** 2 for a, b in flat) / sum(a * a for a, _ in flat)) ** 0.5
    change, size = residual(before, after)
    close((change / size).sqrt(), expected)
    settled = iterate(toy.embeds, toy.run, toy.project, SLOTS)
    assert residual(settled, iterate(settled, toy.run, toy.project, 1))[0].item() < 1e-24


def test_projection_is_two_layers_a_gelu_and_a_norm() -> None:
    """[known]: Linear - GELU - Linear - LayerNorm of model width; off = the hidden state itself."""
    torch.manual_seed(0)
    project = Projection(WIDTH).double()
    hidden = torch.randn(4, WIDTH, dtype=torch.float64)
    first, _, second, norm = project.layers
    inner = hidden @ first.weight.T + first.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    outer = inner @ second.weight.T + second.bias
    centred = outer - outer.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    close(project(hidden).detach(), expected.detach())
    assert isinstance(make_projection(WIDTH, True), Projection)
    assert isinstance(make_projection(WIDTH, False), nn.Identity)
    assert make_projection(WIDTH, False)(hidden) is hidden
