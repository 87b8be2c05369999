"""Bad input as a class: every command line is well behaved (behaviour.py), 300 of them here, 10,000 in the long tests.

The cases are drawn at random, the same ones every time. Hypothesis shortens one that fails; the command line that is
then printed can be run by hand in a folder with the files that stand beside it.
"""

import importlib.util
import socket
from functools import partial

import argv
import config_words
import damaged_files
import environment
import pytest
import rows
from behaviour import Case, faults, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CLASSES = {
    "config words": config_words.CASES,
    "flags": argv.CASES,
    "environment": environment.CASES,
    "rows": rows.CASES,
    "students": damaged_files.students(),
    "results": damaged_files.results(),
    "aggregated": damaged_files.aggregated(),
    "job records": damaged_files.job_records(),
}
FAST = {
    "config words": 110,
    "flags": 55,
    "environment": 30,
    "rows": 35,
    "students": 10,
    "results": 20,
    "aggregated": 20,
    "job records": 20,
}
LONG = {
    "config words": 4000,
    "flags": 2000,
    "environment": 1000,
    "rows": 1500,
    "students": 300,
    "results": 400,
    "aggregated": 400,
    "job records": 400,
}


@pytest.fixture(autouse=True)
def nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """kava serve ends where it would begin to listen, and no name of a host is looked up."""
    numeric = partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST)
    monkeypatch.setattr(socket, "getaddrinfo", numeric)
    if importlib.util.find_spec("fastapi") and importlib.util.find_spec("uvicorn"):
        monkeypatch.setattr("kava.serve.server.serve", lambda *_: None)


def all_well_behaved(cases: st.SearchStrategy[Case], number: int) -> None:
    """Draws so many cases and fails with the shortest one that is not well behaved."""

    @settings(
        max_examples=number, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases)
    def well_behaved(case: Case) -> None:
        outcome = run(case)
        problems = faults(case, outcome)
        assert not problems, f"{problems}\n{case}\nexit code {outcome.code}\n{outcome.err[-500:]}"

    well_behaved()


@pytest.mark.parametrize("kind", CLASSES)
def test_bad_input_is_refused_or_named(kind: str):
    all_well_behaved(CLASSES[kind], FAST[kind])


@pytest.mark.long
@pytest.mark.parametrize("kind", CLASSES)
def test_any_bad_input_is_refused_or_named(kind: str):
    all_well_behaved(CLASSES[kind], LONG[kind])
