"""Layer maps, aggregation and the projectors: sizes, refusals, files, and what happens to an unguarded target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import kava
from kava.align import Aggregator, KVDimensionProjector, StudentProjector, flatten_heads, layer_map, mix
from kava.errors import CheckpointError, ConfigError, ModelError
from kava.losses.direction import direction_loss
from kava.losses.guard import GUARDS, variance_guard


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**settings) -> KVDimensionProjector:
    return KVDimensionProjector({"teacher": {"d_model": 12}}, 6, **settings)


# layers


@pytest.mark.parametrize(("student", "teacher"), [(12, 32), (24, 28), (28, 24), (2, 7), (5, 1), (7, 7)])
@pytest.mark.parametrize("strategy", ["ratio", "uniform"])
def test_first_and_last_layers_always_map(student: int, teacher: int, strategy: str) -> None:
    entries = layer_map(student, teacher, strategy)
    assert entries[0] == [(0, 1.0)]
    assert entries[-1] == [(teacher - 1, 1.0)]
    if student == teacher:
        assert entries == [[(layer, 1.0)] for layer in range(teacher)]


def test_uniform_and_skip() -> None:
    assert layer_map(4, 8, "uniform") == [[(0, 1.0)], [(2, 1.0)], [(5, 1.0)], [(7, 1.0)]]
    assert layer_map(4, 11, "skip") == [[(0, 1.0)], [(2, 1.0)], [(4, 1.0)], [(6, 1.0)]]
    assert layer_map(1, 9, "ratio") == layer_map(1, 9, "uniform") == [[(8, 1.0)]]
    with pytest.raises(ModelError, match="at least as many layers as the student's 8, this one has 4"):
        layer_map(8, 4, "skip")
    with pytest.raises(ConfigError, match="unknown layer map 'linear'"):
        layer_map(4, 8, "linear")
    with pytest.raises(ConfigError, match="no map between 0"):
        layer_map(0, 8)


def test_a_single_layer_is_not_touched_and_a_mixture_keeps_its_type() -> None:
    layers = [draw(2, 3, seed=i).bfloat16() for i in range(3)]
    assert mix(layers, [(1, 1.0)]) is layers[1]
    mixed = mix(layers, [(0, 0.5), (1, 0.5)])
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, ((layers[0].float() + layers[1].float()) / 2).bfloat16())


# aggregation


def test_widths() -> None:
    teacher, student = (
        SimpleNamespace(num_layers=28, num_heads=2, head_size=128),
        SimpleNamespace(num_layers=24, num_heads=2, head_size=64),
    )
    for shape, whole, one in ((teacher, 7168, 256), (student, 3072, 128)):
        for method in ("concat", "mean", "weighted"):
            assert Aggregator(method, shape.num_layers).dim(shape) == (whole if method == "concat" else one)
            assert Aggregator(method, shape.num_layers, use_all_layers=False).dim(shape) == one


def test_heads_and_layers_lie_in_order() -> None:
    layers = [draw(2, 3, 4, 5, seed=i) for i in range(2)]
    assert torch.equal(flatten_heads(layers[0])[..., 5:10], layers[0][:, 1])
    assert torch.equal(Aggregator("concat", 2)(layers)[..., 15:], flatten_heads(layers[1]))
    for method in ("concat", "mean", "weighted"):
        last = Aggregator(method, 2, use_all_layers=False)
        assert torch.equal(last(layers), flatten_heads(layers[1]))
        assert not list(last.parameters())


def test_layer_weights_learn() -> None:
    aggregator = Aggregator("weighted", 3)
    layers = [draw(1, 2, 4, 5, seed=i) for i in range(3)]
    torch.testing.assert_close(aggregator(layers), Aggregator("mean", 3)(layers))
    (aggregator(layers) - flatten_heads(layers[2])).square().sum().backward()
    assert aggregator.weights.grad[2] < 0 < aggregator.weights.grad[:2].max()


def test_unequal_layers_are_named() -> None:
    layers = [draw(1, 2, 4, 8), draw(1, 1, 4, 16), draw(1, 4, 4, 8)]
    assert Aggregator("concat", 3)(layers).shape == (1, 4, 16 + 16 + 32)
    for method in ("mean", "weighted"):
        with pytest.raises(ModelError, match=r"heads x head size: 1 x 16, 2 x 8, 4 x 8") as refused:
            Aggregator(method, 3)(layers)
        assert "concat" in refused.value.hint
    with pytest.raises(ModelError, match=r"different numbers of tokens: \[3, 4\]"):
        Aggregator("concat", 2)([layers[0], layers[0][:, :, :3]])
    with pytest.raises(ModelError, match="an aggregator of 2 layers was given 3"):
        Aggregator("concat", 2)(layers)
    with pytest.raises(ConfigError, match="unknown aggregation method 'max'"):
        Aggregator("max", 2)


# projector


def test_the_documented_projector() -> None:
    with torch.device("meta"):
        projector = kava.KVDimensionProjector(teacher_configs={"teacher": {"d_model": 7168}}, student_d_model=3072)
    assert projector.count_parameters() == 146_849_792
    assert projector.adapter_K[0].normalized_shape == (7168,)
    assert projector.adapter_V[0].normalized_shape == (7168,)
    names = [type(part).__name__ for part in projector.adapter_K]
    assert names == ["LayerNorm", "Linear", "SiLU", "Dropout", "Linear"]
    assert "Architecture: 7168 -> 3072\n   Total params: 146,849,792" in projector.text()


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_parameters_by_formula(ratio: float) -> None:
    wide, narrow = 12, 6
    hidden = int(ratio * wide)
    one = 2 * (2 * wide + hidden * wide + hidden + hidden * narrow + narrow)
    assert small(mlp_ratio=ratio).count_parameters() == one
    frozen = small(mlp_ratio=ratio, trainable=False)
    assert (frozen.count_parameters(), frozen.count_parameters(trainable_only=True)) == (one, 0)


def test_one_teacher_or_several() -> None:
    alone = small().eval()
    keys, values = draw(2, 3, 12, seed=1), draw(2, 3, 12, seed=2)
    out = alone(keys, values)
    assert torch.equal(out[0], alone.adapter_K(keys))
    assert torch.equal(out[1], alone.adapter_V(values))
    assert torch.equal(alone(keys, values, teacher="teacher")[1], out[1])
    both = KVDimensionProjector({"big": {"d_model": 12}, "small": {"d_model": 8}}, 6).eval()
    assert torch.equal(both(keys, values, "big")[0], both.adapters["big"]["K"](keys))
    assert both(draw(1, 8), draw(1, 8), "small")[1].shape == (1, 6)
    for refused in (lambda: both.adapter_K, lambda: both(keys, values), lambda: both(keys, values, "other")):
        with pytest.raises(ConfigError, match="the projector has no teacher") as error:
            refused()
        assert "big, small" in error.value.hint


def test_every_weight_of_both_branches_gets_a_gradient() -> None:
    projector = small()
    out = projector(draw(2, 3, 12, seed=1), draw(2, 3, 12, seed=2))
    sum(part.square().sum() for part in out).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in projector.parameters())


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(ModelError, match="takes keys of width 12, not 10"):
        small()(draw(1, 10), draw(1, 12))
    with pytest.raises(ModelError, match="takes values of width 12, not 10"):
        small()(draw(1, 12), draw(1, 10))


def test_building_tries_every_branch_and_draws_nothing_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states, tried = [], []
    plain = KVDimensionProjector.try_out

    def watched(self: KVDimensionProjector) -> None:
        states.append(torch.random.get_rng_state())
        plain(self)
        states.append(torch.random.get_rng_state())
        tried.append(self.training)

    monkeypatch.setattr(KVDimensionProjector, "try_out", watched)
    small(dropout=0.5)
    assert torch.equal(*states)
    assert tried == [True]
    broken = small()
    with torch.no_grad():
        broken.adapter_V[1].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="adapter_V of teacher 'teacher'"):
        broken.try_out()


def test_dropout_works_in_training_and_never_in_a_frozen_projector() -> None:
    keys = draw(4, 12)
    living, frozen = small(dropout=0.5).train(), small(dropout=0.5, trainable=False).train()
    assert not torch.equal(living(keys, keys)[0], living(keys, keys)[0])
    assert torch.equal(frozen(keys, keys)[0], frozen(keys, keys)[0])


@pytest.mark.parametrize("method", ["xavier", "kaiming", "normal"])
def test_inits(method: str) -> None:
    torch.manual_seed(0)
    weight = KVDimensionProjector({"teacher": {"d_model": 400}}, 100, init_method=method).adapter_K[1].weight
    wanted = {"xavier": (2 / 800) ** 0.5, "kaiming": (2 / 400) ** 0.5, "normal": 0.02}[method]
    assert weight.std().item() == pytest.approx(wanted, rel=0.02)
    assert not small(init_method=method).adapter_V[4].bias.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher_configs": {}}, "has no teacher"),
        ({"teacher_configs": {"a": {"d_model": 0}}}, "d_model of teacher 'a': 0 is not a whole number above 0"),
        ({"teacher_configs": {"a": {"d_model": 8, "layers": 2}}}, r"has keys \['d_model', 'layers'\]"),
        ({"teacher_configs": {"a": {}}}, r"has keys \[\]"),
        ({"teacher_configs": {"Qwen2.5": {"d_model": 8}}}, "cannot be called 'Qwen2.5'"),
        ({"teacher_configs": {"keys": {"d_model": 8}}}, "cannot be called 'keys'"),
        ({"student_d_model": 3.5}, "student_d_model: 3.5 is not"),
        ({"mlp_ratio": 0.01}, "mlp_ratio 0.01 times the teacher's width 12"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"init_method": "zeros"}, "unknown init_method 'zeros'"),
    ],
)
def test_bad_settings(change: dict, words: str) -> None:
    settings = {"teacher_configs": {"teacher": {"d_model": 12}}, "student_d_model": 6}
    with pytest.raises(ConfigError, match=words):
        KVDimensionProjector(**(settings | change))


# files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(tmp_path, dtype: torch.dtype) -> None:
    projector = small(mlp_ratio=0.5, trainable=False).to(dtype)
    path = projector.save(tmp_path / "final_model")
    assert path == tmp_path / "final_model" / "projector.safetensors"
    state = torch.random.get_rng_state()
    again = KVDimensionProjector.from_pretrained(tmp_path / "final_model")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.config == projector.config
    assert not again.training
    assert again.count_parameters(trainable_only=True) == 0
    for name, weight in projector.state_dict().items():
        assert again.state_dict()[name].dtype == dtype
        assert torch.equal(again.state_dict()[name], weight), name
    other = small(mlp_ratio=0.5)
    other.load(path)
    assert torch.equal(other.adapter_K[1].weight, projector.adapter_K[1].weight.float())
    assert other.adapter_K[1].weight.requires_grad
    assert [file.name for file in path.parent.iterdir()] == ["projector.safetensors"]


def test_a_wrong_or_torn_file_is_refused(tmp_path) -> None:
    path = small().save(tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"p\.safetensors: not the weights of this projector"):
        small(mlp_ratio=2.0).load(path)
    with pytest.raises(CheckpointError, match="not the weights"):
        KVDimensionProjector({"other": {"d_model": 12}}, 6).load(path)
    path.write_bytes(path.read_bytes()[:-50])
    for read in (small().load, KVDimensionProjector.from_pretrained):
        with pytest.raises(CheckpointError, match=r"p\.safetensors: cannot be read"):
            read(path)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(tmp_path / "missing")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no projector's settings"):
        KVDimensionProjector.from_pretrained(path)


# the other direction


def test_student_projector() -> None:
    projector = StudentProjector(3, 8, 20)
    keys, values = draw(2, 5, 8, seed=1), draw(2, 5, 8, seed=2)
    for index in range(3):
        out = projector(keys, values, index)
        torch.testing.assert_close(out[0], keys @ projector.K[index].weight.T + projector.K[index].bias)
        torch.testing.assert_close(out[1], values @ projector.V[index].weight.T)
        assert out[0].shape == (2, 5, 20)
    assert sum(weight.numel() for weight in projector.parameters()) == 3 * 2 * (8 * 20 + 20)
    assert not any(weight.requires_grad for weight in StudentProjector(1, 8, 20, trainable=False).parameters())
    assert projector(keys.bfloat16(), values.bfloat16())[0].dtype == torch.float32
    with pytest.raises(ModelError, match="takes values of width 8, not 20"):
        projector(keys, draw(1, 20))


# collapse


@pytest.mark.parametrize("guarded", [True, False])
def test_a_trained_target_collapses_unless_it_is_guarded(guarded: bool) -> None:
    """The student's vectors tell nothing of the teacher's, so that a constant is the easiest agreement."""
    torch.manual_seed(0)
    teacher, noise = draw(8, 10, 12, seed=1), draw(8, 10, 6, seed=2)
    projector, student = small(dropout=0.0), nn.Linear(6, 6)
    kept, reference = torch.ones(8, 10, dtype=torch.bool), torch.full((6,), 0.5)
    optimizer = torch.optim.Adam([*projector.parameters(), *student.parameters()], lr=1e-2)
    for _ in range(250):
        target, _ = projector(teacher, teacher)
        loss = (student(noise) - target).square().mean()
        if guarded:
            loss = loss + variance_guard(target, kept, reference) / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spread = projector(teacher, teacher)[0].std(1).mean().item()
    assert spread > 0.4 if guarded else spread < 0.1


@pytest.mark.parametrize("guard", ["variance", "band"])
def test_targets_that_vary_too_much_come_back_under_the_band_alone(guard: str) -> None:
    """A loss of directions leaves their length free; twice the reference is allowed."""
    torch.manual_seed(0)
    teacher, student = draw(8, 10, 12, seed=1), draw(8, 10, 6, seed=2)
    projector = small(dropout=0.0)
    kept = torch.ones(8, 10, dtype=torch.bool)
    spread = projector(teacher, teacher)[0].std(1).mean(0).detach()
    optimizer = torch.optim.Adam(projector.parameters(), lr=1e-2)
    for _ in range(150):
        target, _ = projector(teacher, teacher)
        guarded = variance_guard(target, kept, spread / 6, GUARDS[guard])
        loss = direction_loss(student[:, None], target[:, None], kept[:, None], "cosine", detach=False)[0] + 3 * guarded
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grown = projector(teacher, teacher)[0].detach().std(1).mean(0) / (spread / 6)
    assert float(grown.mean()) < 2.2 if guard == "band" else float(grown.mean()) > 4
