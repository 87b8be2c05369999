"""The generated sets by name, one file each kind."""

from typing import Any

from kava.data.tasks.long_chains import LongChains, LongChainsNL
from kava.data.tasks.modular import Chains, ChainsNL, Variables, VariablesNL
from kava.data.tasks.multiplication import Multiplication
from kava.data.tasks.problem_set import ProblemSet
from kava.data.tasks.reachability import Reachability

TASKS: dict[str, type[ProblemSet[Any]]] = {
    "chains": Chains,
    "variables": Variables,
    "chains_nl": ChainsNL,
    "variables_nl": VariablesNL,
    "long_chains": LongChains,
    "long_chains_nl": LongChainsNL,
    "reachability": Reachability,
    "multiplication": Multiplication,
}
