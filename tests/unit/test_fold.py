"""Adapters folded into the weights: the same numbers, and the trained student stays as it is."""

import pytest
import torch

import zoo
from kava.backbone import fold
from kava.backbone.fold import adapted_layers, folded
from kava.backbone.lora import add_lora
from kava.backbone.masks import causal_mask, positions
from kava.backbone.model import LatentModel
from kava.config import LoraConfig

FAMILIES = ("llama-gqa", "llama-mha", "gpt2")  # untied; tied; with weights [in, out]


def adapted(family: str) -> LatentModel:
    """A student in training whose adapters and special tokens have moved off their start."""
    model = zoo.latent_model(family)
    model.backbone = add_lora(model.causal_lm, model.family, zoo.SPECIAL, LoraConfig(r=2, alpha=4, dropout=0.0))
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_folded_model_gives_the_same_numbers(family: str) -> None:
    model, batch = adapted(family), zoo.batch()
    twin = folded(model)
    ids = torch.cat([batch["question"], model.slots(len(batch["question"]))], dim=1)
    mask = torch.cat([batch["question_mask"], model.slots(len(ids)) > 0], dim=1)
    out, other = (each.run(each.embed(ids), positions(mask), causal_mask(mask)) for each in (model, twin))
    torch.testing.assert_close(other.hidden, out.hidden, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twin.head(other.hidden), model.head(out.hidden), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twin.as_input(other.hidden), model.as_input(out.hidden), rtol=1e-9, atol=1e-9)
    assert len(adapted_layers(twin)) == 0 < len(adapted_layers(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_student_stays_as_it_is(family: str) -> None:
    model = adapted(family)
    before = {name: (id(weight), weight.detach().clone()) for name, weight in model.named_parameters()}
    kinds, trained = [type(module) for module in model.modules()], list(model.trained())
    twin = folded(model)
    own = {id(weight) for weight in twin.parameters()}
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.trained()) == trained
    for name, weight in model.named_parameters():
        assert id(weight) == before[name][0]
        assert torch.equal(weight, before[name][1]), name
    changed = {id(layer.weight) for layer in adapted_layers(model)}
    adapters = {id(weight) for name, weight in model.trained().items() if not name.startswith("project")}
    shared = {id(weight) for weight in model.parameters()} - changed - adapters
    assert shared <= own
    assert not own & changed
    assert not own & adapters


def test_without_adapters_there_is_no_copy() -> None:
    model = zoo.latent_model("llama-gqa")
    assert folded(model) is model


def test_without_memory_adapters_stay_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = adapted("llama-gqa")
    monkeypatch.setattr(fold, "_free_memory", lambda device: 1000)
    assert folded(model) is model
    assert "adapters stay apart" in capsys.readouterr().err
