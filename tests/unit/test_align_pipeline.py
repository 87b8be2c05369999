"""A teacher's layers, heads and head size brought to a student's."""

from __future__ import annotations

import json

import pytest
import torch

from kava.align import Aligner, HeadDimAdapter, layer_map
from kava.align.heads import head_similarity, match_heads, overlap_map
from kava.align.layers import cka_map, read_map, unused, write_map
from kava.align.rope import rotate, scaled
from kava.align.tokens import iou_matrix
from kava.errors import ConfigError, ModelError
from kava.teachers.base import KVShape

SMALL, LARGE = KVShape(3, 2, 4, 8), KVShape(5, 3, 6, 18)


def some(shape: KVShape, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    size = (2, shape.num_heads, tokens, shape.head_size)
    return [torch.randn(size, generator=draw, dtype=dtype) for _ in range(shape.num_layers)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", ["group_mean", "conv", "matched"])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_identity_teacher_comes_out_as_it_went_in(dtype: torch.dtype, heads: str, autocast: bool) -> None:
    aligner = Aligner(SMALL, SMALL, layer_map(3, 3), heads).to(dtype)
    keys, values = some(SMALL, 5, dtype), some(SMALL, 5, dtype, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = aligner(keys, values, torch.eye(5).expand(2, 5, 5))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for out, given in zip(found, (keys, values), strict=True):
        for one, other in zip(out, given, strict=True):
            torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_keys_that_differ_by_position_alone_stay_one_key() -> None:
    """Why keys are un-rotated first: two tokens of equal content average to that content, wherever they stand."""
    content = torch.randn(1, 2, 1, 4).expand(1, 2, 2, 4)
    iou = torch.ones(1, 1, 2)
    shape = KVShape(1, 2, 4, 8)
    aligner = Aligner(shape, shape, layer_map(1, 1))
    plain, _ = aligner([content], [content], iou)
    torch.testing.assert_close(plain[0], content[:, :, :1])
    turned = rotate(content, *scaled(10000.0, 4).angles(torch.tensor([[0, 3]])))
    mixed, _ = aligner([turned], [turned], iou)
    assert (mixed[0].norm(dim=-1) < 0.9 * content[:, :, :1].norm(dim=-1)).any()


@pytest.mark.parametrize("pair", [(3, 2), (2, 3), (12, 2), (5, 3), (2, 12), (1, 4), (4, 4)])
def test_no_head_is_left_out(pair: tuple[int, int]) -> None:
    teacher, student = pair
    shares = overlap_map(student, teacher)
    assert torch.allclose(shares.sum(1), torch.ones(student, dtype=torch.float64))
    assert (shares.sum(0) > 0).all()
    adapter = HeadDimAdapter(4, 4, teacher, student)
    assert adapter(torch.ones(2, teacher, 3, 4)).allclose(torch.ones(2, student, 3, 4))


def test_few_heads_are_repeated_as_neighbours() -> None:
    found = HeadDimAdapter(2, 2, 2, 4)(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2))
    assert found[0, :, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("pair", [(8, 4), (4, 8), (12, 8), (6, 10)])
def test_a_rotary_pair_stays_a_pair(pair: tuple[int, int]) -> None:
    """The two halves of the head size are never mixed."""
    teacher, student = pair
    weight = HeadDimAdapter(teacher, student, 1, 1).size.weight
    assert not weight[: student // 2, teacher // 2 :].any()
    assert torch.equal(weight[: student // 2, : teacher // 2], weight[student // 2 :, teacher // 2 :])


def test_a_random_start_is_orthogonal() -> None:
    weight = HeadDimAdapter(6, 4, 1, 1, init_identity=False, bias=True).size.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4))


def test_rescaling_twice_is_rescaling_once() -> None:
    adapter, entries = HeadDimAdapter(6, 4, 3, 2), torch.randn(2, 3, 5, 6)
    before = adapter(entries)
    gains, shifts = torch.rand(2, 2, 4) + 0.5, torch.randn(2, 2, 4)
    for gain, shift in zip(gains, shifts, strict=True):
        adapter.rescale(gain, shift)
    wanted = gains[1][:, None] * (gains[0][:, None] * before + shifts[0][:, None]) + shifts[1][:, None]
    torch.testing.assert_close(adapter(entries), wanted)


@pytest.mark.parametrize(("heads", "names"), [("group_mean", 3), ("conv", 4), ("matched", 3)])
def test_gradients_reach_every_adapter(heads: str, names: int) -> None:
    aligner = Aligner(LARGE, SMALL, layer_map(3, 5), heads)
    keys, values = aligner(some(LARGE, 6), some(LARGE, 6, seed=1), torch.rand(2, 4, 6))
    sum(part.square().sum() for part in (*keys, *values)).backward()
    weights = dict(aligner.named_parameters())
    assert len(weights) == 2 * SMALL.num_layers * names
    assert all(weight.grad is not None and weight.grad.any() for weight in weights.values())


def test_what_is_not_compared_is_not_trained() -> None:
    aligner = Aligner(LARGE, SMALL, layer_map(3, 5))
    aligner.freeze_unused([1, 2], ["V"])
    trained = {name for name, weight in aligner.named_parameters() if weight.requires_grad}
    assert trained == {f"adapters.V.{layer}.{name}" for layer in (1, 2) for name in ("size.weight", "gain", "shift")}
    fixed = Aligner(LARGE, SMALL, layer_map(3, 5), trained=False)
    assert not any(weight.requires_grad for weight in fixed.parameters())


def test_half_precision_is_averaged_in_float32() -> None:
    aligner, iou = Aligner(LARGE, SMALL, layer_map(3, 5)), torch.rand(2, 4, 6)
    half = [layer.bfloat16() for layer in some(LARGE, 6)]
    keys, _ = aligner(half, half, iou)
    wanted, _ = aligner([layer.float() for layer in half], [layer.float() for layer in half], iou)
    assert all(torch.equal(one, other) for one, other in zip(keys, wanted, strict=True))


def test_importance_is_shared_out_and_not_trained() -> None:
    aligner = Aligner(LARGE, SMALL, layer_map(3, 5), "conv")
    iou = iou_matrix([(0, 1), (1, 2), (2, 4)], [(0, 2), (2, 4)])[None].expand(2, -1, -1)
    looked = [torch.rand(2, 3, 2) for _ in range(5)]
    found = aligner.importance(looked, iou)
    assert not found[0].requires_grad
    torch.testing.assert_close(found[0].sum((1, 2)), looked[0].sum((1, 2)) * 2 / 3)  # 3 heads averaged to 2
    torch.testing.assert_close(found[0][:, :, 0], found[0][:, :, 1])  # halves of one teacher token


def test_a_question_goes_the_way_of_values() -> None:
    aligner = Aligner(LARGE, SMALL, layer_map(3, 5))
    values = some(LARGE, 1)
    _, wanted = aligner(values, values, torch.ones(2, 1, 1))
    asked = torch.stack([layer[:, :, 0].flatten(1) for layer in values], dim=1)
    torch.testing.assert_close(aligner.question(asked), torch.stack([one.flatten(1) for one in wanted], dim=1))


def test_no_chain_of_thought_is_no_token() -> None:
    keys, values = Aligner(LARGE, SMALL, layer_map(3, 5))(some(LARGE, 0), some(LARGE, 0), torch.zeros(2, 0, 0))
    assert {part.shape for part in (*keys, *values)} == {(2, 2, 0, 4)}


def test_sizes_that_do_not_fit_are_refused() -> None:
    aligner = Aligner(LARGE, SMALL, layer_map(3, 5))
    with pytest.raises(ModelError, match="5 teacher layers was given 3"):
        aligner(some(SMALL, 2), some(SMALL, 2), torch.ones(2, 2, 2))
    with pytest.raises(ModelError, match="3 heads of size 6 was given 2 of 4"):
        aligner(some(KVShape(5, 2, 4, 8), 2), some(LARGE, 2), torch.ones(2, 2, 2))
    with pytest.raises(ModelError, match="layer map of 3 student layers"):
        Aligner(SMALL, SMALL, layer_map(3, 5))
    with pytest.raises(ConfigError, match="unknown head mixing 'mean'"):
        HeadDimAdapter(4, 4, 2, 2, heads="mean")


# -- matched heads -------------------------------------------------------------------------------------------------------


def test_heads_find_their_likes() -> None:
    """A teacher whose heads attend as the student's do, in another order and twice, comes out in the student's order."""
    mine = torch.rand(4, 3, 20)
    order = [2, 0, 1, 0, 2]
    theirs = mine[:, order] + 0.01 * torch.rand(4, 5, 20)
    mask = torch.ones(4, 20, dtype=torch.bool)
    shares = match_heads(head_similarity(mine, theirs, mask))
    assert shares.tolist() == [[0, 0.5, 0, 0.5, 0], [0, 0, 1, 0, 0], [0.5, 0, 0, 0, 0.5]]
    few = match_heads(head_similarity(mine, theirs[:, 1:3], mask))
    assert torch.equal(few[:2], torch.eye(2, dtype=torch.float64))
    assert few[2].sum() == 1  # nobody came to it: it takes the one it is most like


def test_padding_says_nothing_about_heads() -> None:
    mine, theirs = torch.rand(2, 2, 6), torch.rand(2, 3, 6)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    wanted = head_similarity(mine[..., :4], theirs[..., :4], mask[:, :4])
    torch.testing.assert_close(head_similarity(mine, theirs, mask), wanted)


def test_an_aligner_is_matched_layer_by_layer() -> None:
    teacher = KVShape(2, 2, 4, 8)
    aligner = Aligner(teacher, teacher, layer_map(2, 2), "matched")
    mine = [torch.rand(3, 2, 8) for _ in range(2)]
    theirs = [mine[0], mine[1].flip(1)]
    iou, mask = torch.eye(8).expand(3, 8, 8), torch.ones(3, 8, dtype=torch.bool)
    aligner.match(aligner.alike(mine, theirs, iou, mask))
    assert torch.equal(aligner.adapter("V", 0).shares, torch.eye(2))
    assert torch.equal(aligner.adapter("K", 1).shares, torch.eye(2).flip(1))
    for one, other in zip(aligner.importance(theirs, iou), mine, strict=True):
        torch.testing.assert_close(one, other)
    assert "adapters.K.1.shares" in aligner.state_dict()  # found again when it is loaded
    with pytest.raises(ModelError, match="group_mean"):
        Aligner(teacher, teacher, layer_map(2, 2)).match(torch.rand(2, 2, 2))


# -- layer maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("student", "teacher"), [(12, 28), (2, 7), (3, 32), (5, 5), (6, 4), (1, 3), (12, 32)])
def test_blend_gives_every_teacher_layer_a_part(student: int, teacher: int) -> None:
    made = layer_map(student, teacher, "blend")
    for entry in made:
        assert sum(weight for _, weight in entry) == pytest.approx(1)
    if student > 1:
        assert unused(made, teacher) == []
        top = [max(entry, key=lambda one: one[1])[0] for entry in made]
        assert (top[0], top[-1]) == (0, teacher - 1)
        step = (teacher - 1) / (student - 1)
        for place, entry in enumerate(made):  # nearness, falling to 0 one step away
            near = [max(0.0, 1 - abs(t - place * step) / max(step, 1)) for t in range(teacher)]
            assert dict(entry) == pytest.approx({t: w / sum(near) for t, w in enumerate(near) if w > 1e-12})
    if teacher <= student:
        assert made == layer_map(student, teacher)


@pytest.mark.parametrize("student", range(1, 9))
@pytest.mark.parametrize("teacher", range(1, 20))
def test_ratio_reaches_every_layer_where_it_says_so(student: int, teacher: int) -> None:
    left = unused(layer_map(student, teacher), teacher)
    if student > 1 and teacher <= 2 * student - 2:
        assert not left
    assert teacher - 1 not in left
    if teacher > 2 * student:
        assert left


def test_equal_layers_map_to_the_diagonal() -> None:
    alike = torch.full((4, 4), 0.9)
    alike.fill_diagonal_(1.0)
    assert cka_map(alike, 2) == [[(layer, 1.0)] for layer in range(4)]


def test_the_more_alike_counts_more() -> None:
    found = cka_map(torch.tensor([[0.1, 0.8, 0.9], [0.5, -0.2, -0.1], [-0.3, -0.2, -0.4]]), 2)
    assert [layer for layer, _ in found[0]] == [1, 2]
    assert [weight for _, weight in found[0]] == pytest.approx([4 / 13, 9 / 13], abs=1e-5)
    assert found[1] == [(0, 1.0)]  # what is not alike has no part
    assert found[2] == [(1, 1.0)]  # unless nothing is
    with pytest.raises(ConfigError, match="top_k is 4"):
        cka_map(torch.ones(2, 3), 4)


def test_a_map_is_read_as_it_was_written(tmp_path) -> None:
    alike = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    wanted = write_map(tmp_path / "map.json", alike, 2, {"student_model": "s"})
    assert read_map(tmp_path / "map.json", 3, 5) == wanted == cka_map(alike, 2)
    document = json.loads((tmp_path / "map.json").read_text())
    assert set(document) == {
        "student_model", "student_num_layers", "teacher_num_layers", "top_k", "similarity_matrix", "layer_mapping"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"for 3 student and 5 teacher layers, the models have 3 and 4"):
        read_map(tmp_path / "map.json", 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_mapping": {"0": [[0, 0.5]]}}, "must sum to 1"),
        ({"layer_mapping": {"0": [[7, 1.0]]}}, r"teacher layers \[7\] of 2"),
        ({"layer_mapping": {}}, "not a file of layer maps"),
        ({"layer_mapping": {"0": 3}}, "not a file of layer maps"),
        ({"student_num_layers": None}, "not a file of layer maps"),
    ],
)
def test_a_bad_map_is_refused(tmp_path, change: dict, message: str) -> None:
    path = tmp_path / "map.json"
    write_map(path, torch.rand(1, 2) + 0.1, 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        read_map(path, 1, 2)


def test_a_missing_or_torn_map_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_map(tmp_path / "none.json", 1, 2)
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ConfigError, match="not a file of layer maps"):
        read_map(tmp_path / "torn.json", 1, 2)
