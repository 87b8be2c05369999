"""A fake of Cobalt's qsub, qstat and qdel, after its manual pages. No Cobalt.

The id alone is printed; no arrays; what has ended is in no list; a dependent whose dependency fails stays in dep_fail.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fake_queue import ENDED, GONE, QUEUES, RUNS, WAITS, Job, Queue, Refused, directives, main, options

VALUED = {"-n", "-t", "-q", "-A", "-O", "--jobname", "--dependencies", "--mode"}


def qsub(queue: Queue, words: list[str]) -> None:
    given, (script,) = options(words, VALUED, set(), "qsub")
    if given.get("--mode") != ["script"] or not os.access(script, os.X_OK):
        raise Refused(f"command {script} not found, or is not executable", 1)
    text = Path(script).read_text()
    given |= options(directives(text, "#COBALT"), VALUED, set(), "qsub")[0]
    if "-n" not in given or "-t" not in given:
        raise Refused("'time' not provided" if "-n" in given else "'nodecount' not provided", 1)
    where = given.get("-q", [QUEUES[0]])[-1]
    if where not in QUEUES:
        raise Refused(f"queue '{where}' does not exist", 1)
    before = [int(one) for one in given["--dependencies"][0].split(":")] if "--dependencies" in given else []
    job = queue.add(text, None, before, logs=[f"{given['-O'][0]}.output", f"{given['-O'][0]}.error"])
    queue.save()
    print(f"WARNING: job {job['number']} goes to queue '{where}'", file=sys.stderr)
    print(job["number"])


def qstat(queue: Queue, words: list[str]) -> None:
    given, ids = options(words, {"--header"}, set(), "qstat")
    if given["--header"] != ["JobID:State"]:
        raise Refused("qstat: not faked", 1)
    lines = []
    for job in queue.jobs:
        state = job["tasks"]["-"]["state"]
        waits = "dep_fail" if queue.hopeless(job) else "dep_hold" if job["after"] else "queued"
        word = {WAITS: waits, RUNS: "running", GONE: "dep_fail"}.get(state, "")
        if str(job["number"]) in ids and word:
            lines.append(f"{job['number']:<7}{word}")
    if lines:
        print("\n".join(["JobID  State", "=" * 19, *lines]))


def qdel(queue: Queue, words: list[str]) -> None:
    for one in words:
        job = queue.find(int(one))
        if job is None or job["tasks"]["-"]["state"] == ENDED:
            print(f"qdel: Job {one} not found")
            continue
        job["tasks"]["-"] = {"state": ENDED, "code": 143}
        print(f"      Deleted Jobs\nJobID  User\n{'=' * 14}\n{one}   somebody")
    queue.save()


def variables(job: Job, name: str) -> dict[str, str]:
    return {"COBALT_JOBID": str(job["number"]), "COBALT_NODEFILE": os.devnull}


def files(job: Job, name: str) -> tuple[str, str]:
    out, err = job["logs"]
    return out, err


if __name__ == "__main__":
    own = {"qsub": qsub, "qstat": qstat, "qdel": qdel}
    steps = {"begin": lambda queue, _: queue.begin(), "end": lambda queue, _: queue.end(variables, files)}
    sys.exit(main(own | steps))
