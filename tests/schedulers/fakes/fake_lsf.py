"""A fake of LSF's bsub, bjobs and bkill, after its command reference. No LSF.

The script comes on standard input; arrays are in -J and count from 1; an orphan (-ti) is ended; exit codes of -Q go back.
"""

from __future__ import annotations

import json
import re
import sys

from fake_queue import ENDED, GONE, QUEUES, RUNS, WAITS, Job, Queue, Refused, directives, main, options

VALUED = {"-J", "-n", "-R", "-gpu", "-W", "-wa", "-wt", "-q", "-P", "-o", "-e", "-Q", "-w"}
PLAIN = {"-r", "-rn", "-ti"}


def bsub(queue: Queue, words: list[str]) -> None:
    text = sys.stdin.read()
    given, rest = options([*directives(text, "#BSUB"), *words], VALUED, PLAIN, "bsub")
    if rest:
        raise Refused(f"{rest[0]}: Command not found. Job not submitted.", 255)
    where = given.get("-q", [QUEUES[0]])[-1]
    if where not in QUEUES:
        raise Refused(f"{where}: No such queue. Job not submitted.", 255)
    if not re.fullmatch(r"\d+:\d\d", given["-W"][0]):
        raise Refused("Bad RUNLIMIT specification. Job not submitted.", 255)
    name = re.fullmatch(r"[\w.-]+(?:\[(\d+)-(\d+)\])?", given["-J"][0])
    if name is None:
        raise Refused(f"{given['-J'][0]}: Bad job name. Job not submitted.", 255)
    tasks = range(int(name[1]), int(name[2]) + 1) if name[1] else None
    before = [int(one) for one in re.findall(r"done\((\d+)\)", given.get("-w", [""])[0])]
    for one in before:
        if queue.find(one) is None:
            raise Refused(f"done({one}): No matching job found. Job not submitted.", 255)
    again = int(given["-Q"][0]) if "-Q" in given else None
    more = {"logs": [given["-o"][0], given["-e"][0]], "again": again, "orphan": "-ti" in given}
    job = queue.add(text, tasks, before, **more)
    queue.save()
    print(f"Job <{job['number']}> is submitted to {'' if '-q' in given else 'default '}queue <{where}>.")


def bjobs(queue: Queue, words: list[str]) -> None:
    given, ids = options(words, {"-o"}, {"-a", "-json"}, "bjobs")
    if given.get("-o") != ["jobid jobindex stat"] or not {"-a", "-json"} <= given.keys():
        raise Refused("bjobs: not faked", 255)
    found: list[dict[str, str]] = []
    for one in ids:
        job = queue.find(int(one))
        if job is None:
            found.append({"JOBID": one, "ERROR": f"Job <{one}> is not found"})
            continue
        for name, task in job["tasks"].items():
            word = {WAITS: "PEND", RUNS: "RUN", ENDED: "EXIT" if task["code"] else "DONE", GONE: "EXIT"}[task["state"]]
            found.append({"JOBID": one, "JOBINDEX": "0" if name == "-" else name, "STAT": word})
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(found), "RECORDS": found}, indent=2))


def bkill(queue: Queue, words: list[str]) -> None:
    for one in words:
        job = queue.find(int(one))
        if job is None:
            raise Refused(f"Job <{one}>: No matching job found", 255)
        if all(task["state"] in (ENDED, GONE) for task in job["tasks"].values()):
            raise Refused(f"Job <{one}>: Job has already finished", 255)
        for task in job["tasks"].values():
            task.update({RUNS: {"state": ENDED, "code": 130}, WAITS: {"state": GONE}}.get(task["state"], {}))
        print(f"Job <{one}> is being terminated")
    queue.save()


def variables(job: Job, name: str) -> dict[str, str]:
    index = "0" if name == "-" else name
    return {
        "LSB_JOBID": str(job["number"]),
        "LSB_JOBINDEX": index,
        "LS_SUBCWD": job["folder"],
        "LSB_MCPU_HOSTS": "n1 1",
    }


def files(job: Job, name: str) -> tuple[str, str]:
    out, err = (path.replace("%J", str(job["number"])).replace("%I", name) for path in job["logs"])
    return out, err


if __name__ == "__main__":
    own = {"bsub": bsub, "bjobs": bjobs, "bkill": bkill}
    steps = {"begin": lambda queue, _: queue.begin(), "end": lambda queue, _: queue.end(variables, files)}
    sys.exit(main(own | steps))
