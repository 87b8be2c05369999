"""A fake of Torque's qsub, qstat, qdel and qrls, after its command reference. No Torque.

Arrays by -t, dependencies on them by afterokarray, qstat -x in XML; a dependent whose dependency fails is deleted.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from fake_pbs import VALUED, number, qdel, qrls, shown
from fake_queue import ENDED, GONE, QUEUES, RUNS, WAITS, Job, Queue, Refused, directives, main, options


def qsub(queue: Queue, words: list[str]) -> None:
    flags = VALUED - {"-J"} | {"-t"}
    _, (script,) = options(words, flags, {"-h"}, "qsub")
    text = Path(script).read_text()
    given, _ = options([*directives(text, "#PBS"), *words], flags, {"-h"}, "qsub")
    if given.get("-q", [QUEUES[0]])[-1] not in QUEUES:
        raise Refused("qsub: submit error (Unknown queue MSG=cannot locate queue)", 170)
    if not any(re.fullmatch(r"nodes=\d+:ppn=\d+(:gpus=\d+)?", one) for one in given["-l"]):
        raise Refused("qsub: submit error (Bad UID for job execution)", 2)
    span = re.fullmatch(r"(\d+)-(\d+)", given["-t"][0]) if "-t" in given else None
    tasks = range(int(span[1]), int(span[2]) + 1) if span else None
    before: list[int] = []
    for part in given["-W"][0].removeprefix("depend=").split(",") if "-W" in given else []:
        kind, *ids = part.split(":")
        for one in ids:
            job = queue.find(number(one))
            if job is None or (kind == "afterokarray") != ("[]" in one) or kind not in ("afterok", "afterokarray"):
                raise Refused("qsub: submit error (Invalid Job Dependency)", 168)
            before.append(number(one))
    more = {"held": "-h" in given, "logs": [given["-o"][0], given["-e"][0]], "start": str(Path.home())}
    job = queue.add(text, tasks, before, **more)
    queue.save()
    print(shown(job))


def qstat(queue: Queue, words: list[str]) -> None:
    if words == ["--version"]:
        print("Version: 6.1.3\nCommit: 0", file=sys.stderr)
        return
    _, ids = options(words, set(), {"-x", "-t"}, "qstat")
    parts, unknown = [], []
    for one in ids:
        job = queue.find(number(one))
        left = {} if job is None else {name: task for name, task in job["tasks"].items() if task["state"] != GONE}
        if job is None or not left:
            unknown.append(one)
            continue
        for name, task in left.items():
            waits = "H" if job["held"] or job["after"] else "Q"
            letter = {RUNS: "R", ENDED: "C", WAITS: waits}[task["state"]]
            code = "" if task["code"] is None else f"<exit_status>{task['code']}</exit_status>"
            head = f"<Job_Id>{escape(shown(job, name))}</Job_Id><Job_Name>kava</Job_Name>"
            parts.append(f"<Job>{head}<job_state>{letter}</job_state><queue>batch</queue>{code}</Job>")
    if parts:
        print(f"<Data>{''.join(parts)}</Data>")
    if unknown:
        raise Refused("\n".join(f"qstat: Unknown Job Id Error {one}" for one in unknown), 153)


def variables(job: Job, name: str) -> dict[str, str]:
    array = {} if name == "-" else {"PBS_ARRAYID": name}
    return {"PBS_JOBID": shown(job, name), "PBS_O_WORKDIR": job["folder"], "PBS_ENVIRONMENT": "PBS_BATCH", **array}


def files(job: Job, name: str) -> tuple[str, str]:
    out, err = (path.replace("$PBS_JOBID", shown(job, name)) for path in job["logs"])
    return out, err


if __name__ == "__main__":
    own = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qrls": qrls}
    steps = {"begin": lambda queue, _: queue.begin(), "end": lambda queue, _: queue.end(variables, files)}
    sys.exit(main(own | steps))
