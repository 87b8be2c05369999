"""docs/paper-map.md, docs/layout.md and docs/add-a-variant.md say what the tree says, and the examples run."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import explicit
import mixtures
import zoo
from compare import UNEVEN, load_by_hand
from kava.align import Aligner
from kava.align.layers import unused
from kava.backbone.masks import positions
from kava.cli import main as cli
from kava.compress import make_compressor
from kava.config import KEYS, TAGS, LossConfig, explain, list_recipes, load_recipe, parse_overrides
from kava.errors import DataError
from kava.fuse import Query
from kava.objective.compare import KVComparison
from kava.objective.make import latent_objective, make_objective
from kava.objective.student import TextColumns
from kava.teachers.base import KVShape
from matrix import KEEP, TOLERANCE, alone, cases, compress

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "kava"
MAP = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")
LAYOUT = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
VARIANT = (ROOT / "docs" / "add-a-variant.md").read_text(encoding="utf-8")
SECTIONS = "|".join(sorted({key.partition(".")[0] for key in KEYS}))
COLUMNS = {
    "learning rate": "training.learning_rate", "alpha1": "loss.alpha1_codi", "alpha2": "loss.alpha2_kv",
    "KV loss": "loss.kv_loss_type", "layer std": "loss.layerwise_std", "lambda": "rkv.lambda",
    "projection": "loss.use_projection", "weight decay": "training.weight_decay", "epochs": "training.epochs",
    "accumulation": "training.gradient_accumulation_steps",
}  # fmt: skip

NEEDS = {"rkv.crop_keep": ["rkv.method=crop"], "rkv.full_slots": ["rkv.method=full"]}  # else without effect


def section(number: int) -> str:
    return re.search(rf"^## {number}\. .*?(?=^## |\Z)", MAP, re.M | re.S).group(0)


def rows(text: str, first: str) -> list[dict[str, str]]:
    """The table whose first column is called `first`, a dict per line."""
    lines = [line for line in text[text.index(f"| {first} |") :].splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(header, cells, strict=False)) for cells in body if len(cells) == len(header)]


def value(text: str) -> Any:
    return next(iter(parse_overrides([f"training.learning_rate={text}"]).values()))


# ---- paper-map.md


def resolve(reference: str) -> Any:
    """`compress/rkv.py:RKV` or `examples/by_hand.py:by_hand` as the object it names."""
    path, _, name = reference.partition(":")
    if path.startswith("examples/"):
        assert Path(path).name == "by_hand.py"
        module = load_by_hand()
    else:
        module = importlib.import_module("kava." + path.removesuffix(".py").replace("/", "."))
    target: Any = module
    for part in name.split("."):
        target = getattr(target, part)
    return target


def references() -> list[str]:
    return sorted(set(re.findall(r"`([\w/]+\.py:[\w.]+)`", MAP)))


def test_every_name_is_in_the_code() -> None:
    assert len(references()) > 40
    for reference in references():
        resolve(reference)


@cache
def functions_in(stem: str) -> set[str]:
    (file,) = (ROOT / "tests").rglob(f"{stem}.py")
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_test_is_there() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", MAP)
    assert len(named) > 40
    assert [f"{stem}::{name}" for stem, name in named if name not in functions_in(stem)] == []


def test_every_setting_is_a_key_and_accepted() -> None:
    named = set(re.findall(rf"`((?:{SECTIONS})\.[a-z0-9_.]+)(=[^`]+)?`", MAP))
    assert len(named) > 30
    for key, equals in named:
        assert key in KEYS, key
        if equals:
            load_recipe("llama3b_aug" if "accumulation" in key else "llama1b_aug", [*NEEDS.get(key, ()), key + equals])


PAPER = [name for name in list_recipes() if "Table 6" in load_recipe(name).about.source]


def test_the_table_of_recipes() -> None:
    table = rows(section(6), "recipe")
    assert {row["recipe"] for row in table} == set(PAPER)
    for row in table:
        values = {setting.key: setting.value for setting in explain(load_recipe(row["recipe"]))}
        for name, key in COLUMNS.items():
            assert values[key] == value(row[name]), f"{row['recipe']}: {key}"


def test_what_the_recipes_share() -> None:
    table = rows(section(6)[section(6).index("Common to the six") :], "setting")
    for name in PAPER:
        values = {setting.key: setting for setting in explain(load_recipe(name))}
        for row in table:
            key = row["setting"].strip("`")
            assert values[key].value == value(row["value"]), f"{name}: {key}"
            tag = KEYS[key].tag if values[key].origin == "default" else values[key].tag
            assert tag == row["tag"], key


def test_every_row_has_a_tag_and_settings_have_theirs() -> None:
    for number in (*range(1, 6), 10, 11, 12):
        for row in rows(section(number), "what"):
            tag = row["tag"]
            assert tag == "-" or set(re.findall(r"[a-z]+", tag)) & set(TAGS), row["what"]


def test_every_open_setting_is_among_the_open_points() -> None:
    open_keys = {key.name for key in KEYS.values() if key.tag == "open"}
    assert {key for key in open_keys if key not in section(8)} == set()


# ---- layout.md


def test_every_room_is_on_the_map() -> None:
    rooms = {path.name + "/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert {name for name in rooms | files if f"`{name}`" not in LAYOUT} == set()


# ---- add-a-variant.md


def examples(title: str) -> list[str]:
    """The Python blocks below this heading."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", VARIANT, re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def names_of(title: str) -> dict[str, Any]:
    """What the examples below this heading define, run in order."""
    names: dict[str, Any] = {"__name__": "add_a_variant"}
    for text in examples(title):
        exec(compile(text, "add-a-variant.md", "exec"), names)
    return names


def test_every_example_runs() -> None:
    for title in re.findall(r"^## (.+)$", VARIANT, re.M):
        names_of(title)


@pytest.fixture
def my_compressors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "my_compressors.py").write_text(examples("A compressor")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_compressors", raising=False)
    return importlib.import_module("my_compressors")


@pytest.mark.parametrize("heads", ["mha", "gqa"])
def test_the_compressor_of_the_page_keeps_small_norms(my_compressors: ModuleType, heads: str) -> None:
    compressor = make_compressor("my_compressors:SmallNorm")
    assert isinstance(compressor, my_compressors.SmallNorm)
    for case in cases(heads):
        out = compress(compressor, case)
        for b, length in enumerate(case.lengths):
            norms = case.keys[b, :, case.first[b] : case.first[b] + length].norm(dim=-1)
            for h, norm in enumerate(norms):
                wanted = sorted(norm.argsort()[: min(KEEP, length)].tolist())
                got = (out.index[b, h][out.kept[b, h]] - case.first[b]).tolist()
                assert got == wanted
            single = compress(compressor, alone(case, b, heads))
            torch.testing.assert_close(out.keys[b], single.keys[0], atol=TOLERANCE[torch.float64], rtol=0)


def test_the_compressor_of_the_page_trains(
    my_compressors: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^```bash\nPYTHONPATH=\. kava (.*)\n```$", VARIANT, re.M)
    assert cli.main([*command.split(), "logging.report_to=[]"]) == 0
    recipe = yaml.safe_load((tmp_path / "outputs" / "small_norm" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["rkv"]["method"] == "my_compressors:SmallNorm"


def test_the_source_of_the_page_reads_its_row() -> None:
    names = names_of("A data source")
    row = ast.literal_eval(re.search(r"\{.*\}", examples("A data source")[0]).group(0))
    assert names["parse"](row, "riddles.jsonl line 1", "equation") == ("I am 3 more than 4.", ("4+3=7",), "7")
    assert names["riddles"].names == ("owner/riddles", "riddles")
    with pytest.raises(DataError, match=r"riddles.jsonl line 1: field 'solution' is missing"):
        names["parse"]({name: row[name] for name in ("riddle", "working")}, "riddles.jsonl line 1", "equation")


def test_the_family_of_the_page_is_a_family() -> None:
    assert names_of("A model family")["mine"].rotary


def test_the_distance_of_the_page_is_a_distance() -> None:
    distance = names_of("A distance")["LogCosh"]()
    student, target = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kept = torch.rand(2, 3, 4) > 0.3
    total = distance(KVComparison("k", 0, student, target, kept))
    torch.testing.assert_close(total, (torch.log(torch.cosh(student - target)) * kept[..., None]).sum())
    total.backward()
    torch.testing.assert_close(student.grad, torch.tanh(student - target) * kept[..., None])
    assert target.grad is None
    assert distance.count(kept[:, 0].sum(1), 3, 5) == int(kept[:, 0].sum()) * 15


def test_the_source_of_the_page_is_a_source_of_targets() -> None:
    model, batch = zoo.latent_model("llama-gqa", dtype=torch.float64), zoo.batch(UNEVEN)
    loss = LossConfig(alpha1_codi=0.0, kv_loss_type="l1", layerwise_std=False)
    source = names_of("A target source")["Zeros"](model.kv_shape)
    objective = latent_objective(model, loss, make_compressor("crop"), source=source)
    terms = {term.name: term for term in objective(batch).terms}
    student, _ = objective.view(batch)
    kept = torch.arange(model.latent.num_tokens) < batch["cot_mask"].sum(1, keepdim=True)
    entries = torch.stack([*student.keys, *student.values])
    assert terms["kv"].count > 0
    torch.testing.assert_close(terms["kv"].total, (entries.abs() * kept[None, :, None, :, None]).sum() / 2)


def test_the_view_of_the_page_is_a_view() -> None:
    model, batch = explicit.student("llama-gqa"), zoo.batch(UNEVEN)
    view = names_of("A view")["UnrotatedColumns"](model)
    (plain, _), (unrotated, _) = TextColumns(model)(batch), view(batch)
    real = batch["cot_mask"][:, None, :, None]
    place = positions(batch["cot_mask"], batch["question_mask"].sum(1))
    for before, after, value, same in zip(unrotated.keys, plain.keys, unrotated.values, plain.values, strict=True):
        assert not torch.allclose(before * real, after * real)
        torch.testing.assert_close(rotated(model, before, place) * real, after * real)
        assert torch.equal(value, same)
    kind = make_objective(explicit.recipe_of(), model, explicit.teacher("llama-gqa"))
    kind.view = view
    assert {"ce_student", "kv"} <= {term.name for term in kind(batch).terms}


def rotated(model: Any, keys: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """keys [B, H, N, D] with the model's own rotary embedding."""
    cos, sin = model.decoder.rotary_emb(keys, place)
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return keys * cos[:, None] + turned * sin[:, None]


def test_the_router_of_the_page_begins_with_equal_weights_and_learns() -> None:
    router = names_of("A router")["NormGate"](8, 3, num_outputs=2)
    weights = router(torch.randn(4, 8))
    torch.testing.assert_close(weights, torch.full((4, 2, 3), 1 / 3))
    weights[..., 0].log().sum().backward()
    assert bool((router.linear.weight.grad.abs().amax(1) > 0).all())


def test_the_fusion_of_the_page_weighs_and_learns() -> None:
    layers = 3
    shape = KVShape(layers, 2, 6, 12)
    constant = names_of("A fusion")["Constant"].of(None, len(mixtures.THREE), shape).double()
    query = Query(hidden=torch.zeros(2, 5))
    torch.testing.assert_close(constant(query), torch.full((2, layers, 1, 3), 1 / 3, dtype=torch.float64))
    with torch.no_grad():
        constant.scores[1, 2] = 1.0
    assert constant(query, 0.1)[0, 1, 0, 2] > constant(query)[0, 1, 0, 2] > 1 / 3
    kind = mixtures.objective(mixtures.THREE, *mixtures.ROUTED)
    kind.mixture.mixture.fusion = constant
    _, gradients = explicit.measure(kind, [mixtures.batch(mixtures.THREE)])
    moved = gradients["source.mixture.fusion.scores"]
    assert bool((moved.abs().amax(1) > 0).all())
    torch.testing.assert_close(moved.sum(1), torch.zeros(layers, dtype=torch.float64))  # what one gains, others lose


def test_the_layer_map_of_the_page_is_a_map() -> None:
    top = names_of("An alignment step")["top"]
    assert top(2, 5) == [[(3, 1.0)], [(4, 1.0)]]
    assert unused(top(2, 5), 5) == [0, 1, 2]
    assert top(3, 3) == [[(0, 1.0)], [(1, 1.0)], [(2, 1.0)]]
    deep, small = KVShape(5, 2, 4, 8), KVShape(2, 2, 4, 8)
    entries = [torch.full((1, 2, 3, 4), float(layer)) for layer in range(5)]
    keys, values = Aligner(deep, small, top(2, 5))(entries, entries, torch.eye(3)[None])
    for mapped in (keys, values):
        assert [float(layer.detach().mean()) for layer in mapped] == [3.0, 4.0]
