"""A fake of PBS Professional's qsub, qstat, qdel, qrls and qrerun, after its reference guide. No PBS.

Ids are 4711.server and 4711[].server, tasks 4711[0].server; qstat -F json; a dependent whose afterok fails is deleted.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from fake_queue import ENDED, GONE, QUEUES, RUNS, WAITS, Job, Queue, Refused, directives, main, options

VALUED = {"-N", "-l", "-q", "-A", "-J", "-o", "-e", "-r", "-W"}
SERVER = "server"


def shown(job: Job, name: str = "") -> str:
    array = "-" not in job["tasks"]
    return f"{job['number']}{f'[{name}]' if array else ''}.{SERVER}"


def number(text: str) -> int:
    return int(re.match(r"\d+", text)[0])  # type: ignore[index]


def qsub(queue: Queue, words: list[str]) -> None:
    _, (script,) = options(words, VALUED, {"-h"}, "qsub")
    text = Path(script).read_text()
    given, _ = options([*directives(text, "#PBS"), *words], VALUED, {"-h"}, "qsub")
    if given.get("-q", [QUEUES[0]])[-1] not in QUEUES:
        raise Refused("qsub: Unknown queue", 170)
    if not any(re.fullmatch(r"select=\d+:ncpus=\d+(:ngpus=\d+)?(:mem=\d+mb)?:mpiprocs=1", one) for one in given["-l"]):
        raise Refused("qsub: Illegal attribute or resource value Resource_List.select", 167)
    span = re.fullmatch(r"(\d+)-(\d+)", given["-J"][0]) if "-J" in given else None
    if "-J" in given and (span is None or int(span[1]) >= int(span[2])):
        raise Refused("qsub: illegal -J value", 2)
    tasks = range(int(span[1]), int(span[2]) + 1) if span else None
    after = re.fullmatch(r"depend=afterok:(.+)", given["-W"][0]) if "-W" in given else None
    before = [number(one) for one in after[1].split(":")] if after else []
    for one in before:
        if queue.find(one) is None:
            raise Refused("qsub: Invalid Job Dependency", 168)
    more = {"held": "-h" in given, "logs": [given["-o"][0], given["-e"][0]], "start": str(Path.home())}
    job = queue.add(text, tasks, before, **more)
    queue.save()
    print(shown(job))


def qstat(queue: Queue, words: list[str]) -> None:
    if words == ["--version"]:
        print("pbs_version = 22.05.11", file=sys.stderr)
        return
    given, ids = options(words, {"-F"}, {"-x", "-t", "-f"}, "qstat")
    if given["-F"] != ["json"] or not {"-f", "-t", "-x"} <= given.keys():
        raise Refused("qstat: not faked", 2)
    found, unknown = {}, []
    for one in ids:
        job = queue.find(number(one))
        if job is None:
            unknown.append(one)
            continue
        states = [task["state"] for task in job["tasks"].values()]
        over = all(state in (ENDED, GONE) for state in states)
        if "-" not in job["tasks"]:
            found[shown(job)] = {"job_state": "F" if over else "B" if states.count(WAITS) < len(states) else "Q"}
        for name, task in job["tasks"].items():
            last = "F" if name == "-" else "X"
            letter = "H" if job["held"] or (job["after"] and task["state"] == WAITS) else "Q"
            letter = {RUNS: "R", ENDED: last, GONE: last}.get(task["state"], letter)
            code = {} if task["code"] is None else {"Exit_status": task["code"]}
            found[shown(job, name)] = {"Job_Name": "kava", "job_state": letter, **code}
    print(json.dumps({"timestamp": 1, "pbs_version": "22.05.11", "pbs_server": SERVER, "Jobs": found}, indent=4))
    if unknown:
        raise Refused("\n".join(f"qstat: Unknown Job Id {one}" for one in unknown), 153)


def qdel(queue: Queue, words: list[str]) -> None:
    for one in words:
        job = queue.find(number(one))
        if job is None:
            raise Refused(f"qdel: Unknown Job Id {one}", 153)
        if all(task["state"] in (ENDED, GONE) for task in job["tasks"].values()):
            raise Refused(f"qdel: Job has finished {one}", 35)
        for task in job["tasks"].values():
            task.update({RUNS: {"state": ENDED, "code": 271}, WAITS: {"state": GONE}}.get(task["state"], {}))
    queue.save()


def qrls(queue: Queue, words: list[str]) -> None:
    for one in words:
        job = queue.find(number(one))
        if job is None:
            raise Refused(f"qrls: Unknown Job Id {one}", 153)
        job["held"] = False
    queue.save()


def variables(job: Job, name: str) -> dict[str, str]:
    array = {} if name == "-" else {"PBS_ARRAY_INDEX": name, "PBS_ARRAY_ID": shown(job)}
    return {"PBS_JOBID": shown(job, name), "PBS_O_WORKDIR": job["folder"], "PBS_ENVIRONMENT": "PBS_BATCH", **array}


def files(job: Job, name: str) -> tuple[str, str]:
    """Where -o and -e are folders, the files are called by the id."""
    out, err = job["logs"]
    return f"{out}/{shown(job, name)}.OU", f"{err}/{shown(job, name)}.ER"


if __name__ == "__main__":
    own = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qrls": qrls}
    steps = {"begin": lambda queue, _: queue.begin(), "end": lambda queue, _: queue.end(variables, files)}
    sys.exit(main(own | steps))
