"""Reachability in a graph, in ProsQA's style: edges, a node, and two others of which one can be reached.

    question  "12>34;51>60;34>77;..;12:77|60?"    steps "12>34" "34>77"    answer "77"

Two trees of half of `nodes` each, numbered at random, every edge away from its root. A path of k edges leads from each
root to one of the two nodes that are named; which root is asked about, the order of edges and of the two names are
drawn, so that neither depth nor place nor number tells the answer. Only one path leads from the root to the answer.
"""

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kava.data.tasks.problem_set import ProblemSet, Texts
from kava.errors import DataError

if TYPE_CHECKING:
    from kava.config import GeneratorConfig

NAMES = range(10, 100)


@dataclass(frozen=True, slots=True)
class Graph:
    """The edges as they are written, the path from the node asked about to the answer, and the two names."""

    edges: tuple[tuple[int, int], ...]
    path: tuple[int, ...]
    named: tuple[int, int]


class Reachability(ProblemSet[Graph]):
    card = "reachability"
    cot_type = "natural_language"  # the last number of a step is its result

    def __init__(self, name: str, config: "GeneratorConfig"):
        super().__init__(name, config)
        self.check_length(config.max_steps)

    def check_length(self, steps: int) -> None:
        if self.config.nodes < 2 * (steps + 1):
            raise DataError(
                f"built-in set {self.name}: two paths of {steps} edges need {2 * (steps + 1)} nodes, "
                f"dataset.generator.nodes is {self.config.nodes}",
                "raise dataset.generator.nodes, or lower dataset.generator.max_steps",
            )

    def draw(self, rng: random.Random, steps: int) -> Graph:
        self.check_length(steps)
        half = self.config.nodes // 2
        names = rng.sample(NAMES, 2 * half)
        trees = names[:half], names[half:]
        edges = [edge for tree in trees for edge in _tree(rng, tree, steps)]
        rng.shuffle(edges)
        ends = [tree[steps] for tree in trees]
        rng.shuffle(ends)
        return Graph(tuple(edges), tuple(trees[0][: steps + 1]), (ends[0], ends[1]))

    def key(self, problem: Graph) -> str:
        edges = ";".join(f"{a}>{b}" for a, b in sorted(problem.edges))
        return f"{edges};{problem.path[0]}:{min(problem.named)}|{max(problem.named)}"

    def texts(self, problem: Graph) -> Texts:
        edges = "".join(f"{a}>{b};" for a, b in problem.edges)
        question = f"{edges}{problem.path[0]}:{problem.named[0]}|{problem.named[1]}?"
        steps = tuple(f"{a}>{b}" for a, b in pairwise(problem.path))
        return Texts(question, steps, str(problem.path[-1]))


def _tree(rng: random.Random, nodes: list[int], steps: int) -> list[tuple[int, int]]:
    """A path over the first `steps` + 1 nodes, and each other node below one that stands before it."""
    path = list(pairwise(nodes[: steps + 1]))
    return path + [(nodes[rng.randrange(place)], nodes[place]) for place in range(steps + 1, len(nodes))]
