"""kava lens on a student whose truth is planted: what each latent reads and says, whom the answer attends to, the diagonal.

A GPT-2 whose blocks add nothing: a token's state is its embedding, a row of the identity. Head and projection map states to
tokens by lists, queries are biases, keys and values codes of tokens; so everything the lens returns is known beforehand.
"""

import copy
from itertools import permutations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kava import lens
from kava.backbone.families import family_of
from kava.backbone.load import assemble
from kava.config import load_recipe
from kava.data.example import Example
from kava.infer.student import Student
from zoo_tokenizers import bos

SIZE, LAYERS, HEADS, LATENTS = 384, 3, 2, 3
STEPS = ("1+1=7", "1+1=8", "1+1=9")
PLACES = (4, 10, 16)  # of the results among the chain's tokens
EXAMPLES = [Example(f"p/{i}", f"{i}+4?", STEPS, "5") for i in range(4)]
SAID = {"7": "4", "8": "3", "9": "6"}  # what the head makes of each


def planted(order: tuple[int, ...]) -> Student:
    """The student whose latents become the results of the steps `order`, one after the other."""
    recipe = load_recipe(
        "debug",
        [
            "lora.enabled=false",
            f"latent.num_tokens={LATENTS}",
            "latent.num_iterations=3",
            "loss.use_projection=false",
            "evaluation.max_new_tokens=4",
        ],
    )
    tokenizer = copy.deepcopy(bos())
    size = {"vocab_size": SIZE, "n_embd": SIZE, "n_layer": LAYERS, "n_head": HEADS, "n_inner": 8, "n_positions": 256}
    lm = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=2, eos_token_id=1, tie_word_embeddings=False)).eval()
    for weight in lm.parameters():
        if weight.ndim > 1:
            torch.nn.init.zeros_(weight)
    model = assemble(lm, family_of(lm.config, "planted"), tokenizer, recipe)

    def token(text: str) -> int:
        (number,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        return number

    results = [token(text) for text in ("7", "8", "9")]
    latents = [results[i] for i in order]
    other = token("+")
    follows = {model.special.bot: latents[0], model.special.latent: other, other: other}
    follows |= {latents[0]: latents[1], latents[1]: latents[2]}
    says = {token(of): token(what) for of, what in SAID.items()}
    says |= {token(":"): token("5"), token("5"): tokenizer.eos_token_id}
    with torch.no_grad():
        lm.get_input_embeddings().weight.copy_(torch.eye(SIZE))
        lm.get_output_embeddings().weight.copy_(mapping(says))
        project = torch.nn.Linear(SIZE, SIZE, bias=False)
        project.weight.copy_(mapping(follows) / SIZE**0.5)
        model.project = project
        for layer, block in enumerate(lm.transformer.h):
            plant_attention(block.attn.c_attn, results, layer)
    return Student(model.eval(), tokenizer, recipe)


def mapping(pairs: dict[int, int]) -> torch.Tensor:
    """The matrix that sends state i to state pairs[i]."""
    matrix = torch.zeros(SIZE, SIZE)
    for source, target in pairs.items():
        matrix[target, source] = 1
    return matrix


def plant_attention(projections, results: list[int], layer: int) -> None:
    """Head h of a layer looks for the token of the result (layer + h) mod 3, wherever it is."""
    width = SIZE // HEADS
    for head in range(HEADS):
        columns = head * width
        for token in range(SIZE):
            code = results.index(token) if token in results else 3 + token % (width - 3)
            for part in (1, 2):  # keys, values
                projections.weight[token, part * SIZE + columns + code] = 1
        projections.bias[columns + (layer + head) % 3] = 200


def texts(near):
    return [slot[0].token for slot in near]


ORDERS = list(permutations(range(LATENTS)))


@pytest.fixture(scope="module")
def reports():
    return {order: lens.look(planted(order), EXAMPLES, top=2) for order in ORDERS}


def expected(order: tuple[int, ...]) -> dict[str, object]:
    a, b, c = (("7", "8", "9")[i] for i in order)
    heads = [
        [[float(order[i] == (layer + head) % 3) for i in range(LATENTS)] for head in range(HEADS)]
        for layer in range(LAYERS)
    ]
    return {
        "reads": [None, [a, "+", "+"], [a, b, "+"], [a, b, c]],
        "says": [SAID[a], SAID[b], SAID[c]],
        "heads": heads,
        "best_step": list(order),
        "best_token": [PLACES[i] for i in order],
        "on_diagonal": sum(place == step for place, step in enumerate(order)) / 3,
    }


def measured(report) -> dict[str, object]:
    view = report.questions[0]
    rounded = [[[round(weight, 5) for weight in head] for head in layer] for layer in view.attention.heads]
    return {
        "reads": [None if one.reads is None else texts(one.reads) for one in view.rounds],
        "says": texts(view.rounds[-1].says),
        "heads": rounded,
        "best_step": view.chain.best_step,
        "best_token": view.chain.best_token,
        "on_diagonal": view.chain.on_diagonal,
    }


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_what_is_planted_is_returned_and_nothing_else(reports, order):
    assert measured(reports[order]) == expected(order)
    for name, value in expected(order).items():  # each of them tells this planting from another
        assert any(measured(reports[other])[name] != value for other in ORDERS)


def test_the_values_behind_it(reports):
    view = reports[0, 1, 2].questions[0]
    assert [near[0].value for near in view.rounds[-1].reads] == pytest.approx([1, 1, 1], abs=1e-3)
    assert [row[step] for row, step in zip(view.chain.by_step, range(3), strict=True)] == pytest.approx(
        [1] * 3, abs=1e-3
    )
    assert all(row[step] < 0.5 for i, row in enumerate(view.chain.by_step) for step in range(3) if step != i)
    assert view.chain.step_of_token == [0] * 6 + [1] * 6 + [2] * 5
    assert (view.answer, view.correct, view.attention.tokens[-1]) == ("5", True, "5")
    tokens = len(view.attention.tokens)
    for layer in range(LAYERS):  # two heads look at two latents, all tokens alike
        pair = sorted({layer % 3, (layer + 1) % 3})
        mean = [0.5 if i in pair else 0.0 for i in range(3)]
        assert all(row == pytest.approx(mean, abs=1e-5) for row in view.attention.mean[layer])
        assert all(row == pytest.approx([2 * x for x in mean], abs=1e-5) for row in view.attention.most[layer])
    assert len(view.attention.mean[0]) == tokens == 1 + view.attention.cue + 1
    assert view.attention.question == pytest.approx([0.0] * LAYERS, abs=1e-5)


def test_the_diagonal_of_all_questions(reports):
    straight, shuffled = reports[0, 1, 2].diagonal, reports[1, 2, 0].diagonal
    assert (straight.latents, straight.on_diagonal, shuffled.on_diagonal) == (12, 1.0, 0.0)
    assert straight.chance == shuffled.chance == pytest.approx(1 / 3)
    assert straight.p < 0.01 < shuffled.p == 1.0  # 1/6 to the fourth, and everything is as diagonal


def test_an_answer_that_reads_no_latent_loses_nothing(reports):
    """The blocks add nothing, so only the cue decides."""
    for effect in reports[0, 1, 2].effects:
        assert (effect.own_loss, effect.gold_loss, effect.kept) == (0.0, 0.0, 1.0)
        assert effect.accuracy == (1.0 if effect.slot is None else None)
