"""Stand-ins for SLURM's commands on one machine: a job is a process, its state a file in $STAND_IN_SLURM."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN_SLURM"])


def option(words: list[str], name: str) -> str | None:
    for place, word in enumerate(words):
        if word == name:
            return words[place + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def state_of(number: str) -> str:
    return (FOLDER / number / "state").read_text().strip()


def sbatch(words: list[str]) -> int:
    number = str(len(list(FOLDER.glob("[0-9]*"))) + 1)
    while True:
        try:
            (FOLDER / number).mkdir()
            break
        except FileExistsError:
            number = str(int(number) + 1)
    folder = FOLDER / number
    command = option(words, "--wrap")
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "name").write_text(option(words, "--job-name") or "")
    (folder / "state").write_text("RUNNING")
    output = option(words, "--output") or "/dev/null"
    output = output.replace("%j", number)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SLURM_JOB_ID": number}
    keeper = [sys.executable, __file__, "keep", number, command or "", output]
    away: dict = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(keeper, cwd=option(words, "-D"), env=environment, **away)
    time.sleep(float(os.environ.get("STAND_IN_SBATCH", "0")))  # a scheduler that answers late
    print(number)
    return 0


def keep(words: list[str]) -> int:
    number, command, output = words
    with open(output, "ab") as log:
        child = subprocess.Popen(["bash", "-c", command], stdout=log, stderr=log, start_new_session=True)
    (FOLDER / number / "pid").write_text(str(child.pid))
    code = child.wait()
    if state_of(number) == "RUNNING":
        (FOLDER / number / "state").write_text("FAILED" if code else "COMPLETED")
    return 0


def listed(words: list[str]) -> int:
    name = option(words, "--name")
    for folder in sorted(FOLDER.glob("[0-9]*"), key=lambda folder: int(folder.name)):
        if name in (None, (folder / "name").read_text()):
            print(f"{folder.name}|{(folder / 'state').read_text()}")
    return 0


def scancel(words: list[str]) -> int:
    for number in [word for word in words if re.fullmatch(r"\d+", word)]:
        (FOLDER / number / "state").write_text("CANCELLED")
        os.killpg(int((FOLDER / number / "pid").read_text()), signal.SIGTERM)
    return 0


def srun(words: list[str]) -> int:
    place = next(place for place, word in enumerate(words) if not word.startswith("-"))
    return subprocess.call(words[place:])


def main() -> int:
    what, words = Path(sys.argv[0]).name, sys.argv[1:]
    if what == "slurm.py":
        what, words = words[0], words[1:]
    with open(FOLDER / "calls.txt", "a") as file:
        file.write(json.dumps([what, *words]) + "\n")
    known = {"sbatch": sbatch, "keep": keep, "squeue": listed, "sacct": listed, "scancel": scancel, "srun": srun}
    return known[what](words) if what in known else 0


sys.exit(main())
