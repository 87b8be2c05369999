"""The claim engine on results whose truth is known, and each of its words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kava.lab.analysis.claims import CLAIMS, Claim, Evidence, MemberComparison, judge, num_tested
from kava.lab.analysis.stats import holm

SEEDS = (42, 123, 456, 789, 1024)
MEMBERS = tuple(dict.fromkeys(name for claim in CLAIMS for name in claim.members))
ONE = (Claim("one", "a is better than b", (MemberComparison("a", "above", "b"),)),)


def simulate(
    draw: np.random.Generator,
    members=MEMBERS,
    seeds=SEEDS,
    items: int = 300,
    effects=None,
    seed_sd: float = 0.1,
    item_sd: float = 1.5,
    calm=None,
) -> dict[str, Evidence]:
    """Right or wrong: P = 1 / (1 + exp(-(effect + ease of the item + luck of the run))); instabilities are lognormal."""
    ease = draw.normal(0, item_sd, items)
    found = {}
    for name in members:
        effect = (effects or {}).get(name, 0.0)
        luck = draw.normal(0, seed_sd, (len(seeds), 1))
        right = draw.random((len(seeds), items)) < 1 / (1 + np.exp(-(effect + ease + luck)))
        jumps = (calm or {}).get(name, 0.0) + draw.normal(-2.5, 0.2, len(seeds))
        values = {
            "instability": dict(zip(seeds, jumps.tolist(), strict=True)),
            "accuracy": dict(zip(seeds, right.mean(1).tolist(), strict=True)),
        }
        found[name] = Evidence(dict(zip(seeds, right, strict=True)), values)
    return found


def words(evidence, claims=CLAIMS, **options) -> dict[str, str]:
    return {verdict.claim.name: verdict.word for verdict in judge(claims, evidence, **options)}


def shares(count: int, claims=ONE, seed: int = 0, **settings) -> dict[str, float]:
    """How often each word falls on the first claim, and ("any") how often some claim is supported."""
    draw = np.random.default_rng(seed)
    members = tuple(dict.fromkeys(name for claim in claims for name in claim.members))
    found = [words(simulate(draw, members, **settings), claims) for _ in range(count)]
    first = [one[claims[0].name] for one in found]
    share = {word: first.count(word) / count for word in ("supported", "not supported", "inconclusive")}
    return share | {"any": sum("supported" in one.values() for one in found) / count}


def test_a_true_effect_with_enough_data_is_supported():
    assert shares(40, items=1000, effects={"a": 0.7})["supported"] >= 0.95


def test_no_effect_with_enough_data_is_not_supported():
    found = shares(40, items=5000, seed_sd=0.01)
    assert found["not supported"] >= 0.9
    assert found["supported"] == 0


def test_the_opposite_effect_is_not_supported():
    assert shares(40, items=1000, effects={"a": -0.7})["not supported"] >= 0.95


@pytest.mark.parametrize("data", [{"seeds": (42, 123)}, {"items": 12}, {"seeds": (42,)}])
@pytest.mark.parametrize("effect", [0.0, 0.7])
def test_too_little_data_is_inconclusive(data, effect):
    assert shares(40, effects={"a": effect}, **data)["inconclusive"] >= 0.9


@pytest.mark.parametrize("case", [{"seeds": SEEDS[:3]}, {"seed_sd": 0.6}])
def test_few_false_claims_are_supported(case):
    assert shares(150, CLAIMS, items=150, **case)["any"] <= 0.05


@pytest.mark.long
@pytest.mark.parametrize("seeds", [SEEDS[:3], SEEDS])
@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("items", [30, 300])
def test_at_most_one_in_twenty_analyses_supports_a_false_claim(seeds, seed_sd, items, capsys):
    """1,000 whole analyses each; every member is equally good."""
    for claims in (CLAIMS, ONE):
        found = shares(1000, claims, items=items, seeds=seeds, seed_sd=seed_sd)
        with capsys.disabled():
            print(f"\n{len(seeds)} seeds, run sd {seed_sd}, {items} items, {len(claims)} claims: {found}")
        assert found["any"] <= 0.05


def right(share: float, items: int = 200) -> np.ndarray:
    return np.arange(items) < share * items


def of(values, items: int = 200) -> Evidence:
    """A member whose right items are the first ones of all."""
    return Evidence({seed: right(share, items) for seed, share in values.items()})


def test_a_missing_member_or_seed_is_named_and_not_imputed():
    verdict = judge(ONE, {"a": of({1: 0.5, 2: 0.5, 3: 0.6})})[0]
    assert (verdict.word, verdict.reason) == ("inconclusive", "a against b: no seed that both have")
    verdict = judge(ONE, {"a": of({1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9}), "b": of({2: 0.1, 3: 0.1, 1: 0.1, 7: 0.1})})[0]
    assert verdict.findings[0].compared.seeds == (1, 2, 3)
    assert verdict.findings[0].unpaired == (4, 7)
    assert verdict.word == "supported"
    verdict = judge(ONE, {"a": of({1: 0.9, 2: 0.9, 4: 0.9}), "b": of({1: 0.1, 2: 0.1, 5: 0.1})})[0]
    assert verdict.reason == "a against b: only 2 shared seeds, 3 are needed"


def test_a_claim_needs_all_that_decide_and_nothing_else():
    good, bad = of(dict.fromkeys(SEEDS, 0.9)), of(dict.fromkeys(SEEDS, 0.2))

    def word(*names: str, beside: tuple[str, ...] = ()) -> str:
        comparisons = [MemberComparison("x", "above", name) for name in names]
        comparisons += [MemberComparison("x", "above", name, decides=False) for name in beside]
        return words(
            {"x": of(dict.fromkeys(SEEDS, 0.5)), "good": good, "bad": bad}, (Claim("c", "", tuple(comparisons)),)
        )["c"]

    assert word("bad") == "supported"
    assert word("bad", "good") == "not supported"
    assert word("bad", "none") == "inconclusive"
    assert word("good", "none") == "not supported"
    assert word("bad", beside=("good", "none")) == "supported"


def test_the_margin_is_what_the_user_says():
    draw = np.random.default_rng(1)
    evidence = simulate(draw, ("a", "b"), items=4000, seed_sd=0.01)
    assert words(evidence, ONE, margin=0.03)["one"] == "not supported"
    assert words(evidence, ONE, margin=0.0001)["one"] == "inconclusive"


def test_below_mirrors_above():
    draw = np.random.default_rng(3)
    for effect in (0.0, 0.8, -0.8):
        evidence = simulate(draw, ("a", "b"), items=600, effects={"a": effect})
        mirrored = (Claim("one", "", (MemberComparison("b", "below", "a"),)),)
        assert words(evidence, ONE) == words(evidence, mirrored)


def test_instability_is_judged_as_a_ratio():
    draw = np.random.default_rng(4)
    claims = tuple(claim for claim in CLAIMS if claim.name == "stability")
    members = ("E2_full_kv", "E3_right_crop", "E4_rkv")
    calm = {"E4_rkv": math.log(0.3)}
    assert words(simulate(draw, members, items=20, calm=calm), claims)["stability"] == "supported"
    wild = {"E4_rkv": math.log(3)}
    assert words(simulate(draw, members, items=20, calm=wild), claims)["stability"] == "not supported"


def test_the_correction_is_over_every_deciding_comparison_that_could_be_tested():
    draw = np.random.default_rng(5)
    evidence = simulate(draw, [name for name in MEMBERS if name != "pause"])
    verdicts = judge(CLAIMS, evidence)
    deciding = [one for verdict in verdicts for one in verdict.findings if one.comparison.decides]
    assert len(deciding) == 12
    assert num_tested(verdicts) == 11
    p = [one.p for one in deciding if one.p is not None]
    assert [one.p_holm for one in deciding if one.p is not None] == holm(p)
    assert all(one.p_holm is None for verdict in verdicts for one in verdict.findings if not one.comparison.decides)


def test_significant_only_before_the_correction_is_inconclusive():
    draw = np.random.default_rng(0)
    found = set()
    for _ in range(60):
        evidence = simulate(draw, items=200, effects={"E5_shuffled": -0.35}, seed_sd=0.02)
        for verdict in judge(CLAIMS, evidence):
            one = verdict.findings[0]
            if verdict.claim.name == "control" and one.p < 0.05 <= one.p_holm and one.compared.difference < 0:
                found.add((verdict.word, verdict.reason))
    assert found == {("inconclusive", "E5_shuffled against E4_rkv: not significant after the correction")}
