"""Memory at the size of M³IT: 1.2 million questions, joined with their answers and merged by image."""

import json
import subprocess
import sys

import pytest

QUESTIONS, EACH = 1_200_000, 5
# The whole process, imports included, which take about 100 MiB of it.
LIMIT_MIB = 250

_MEASURED = """
import re, sys
from pathlib import Path
from visatb.commands.prepare import main
code = main(sys.argv[1:])
# Not getrusage's figure, which begins with that of the process that started this one.
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.stderr.write(f"peak {peak // 1024}\\n")
sys.exit(code)
"""


def write(path, key, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        stream.write('{"info": {}, "' + key + '": [')
        for place, entry in enumerate(entries):
            stream.write((", " if place else "") + json.dumps(entry))
        stream.write("]}")


def questions(number, answers):
    for n in range(number):
        n = number - 1 - n if answers else n * 7 % number  # two orders, neither that of the images
        entry = {"question_id": n, "image_id": n // EACH}
        rest = {"multiple_choice_answer": f"answer {n}"} if answers else {"question": f"What is number {n} like?"}
        if answers:
            rest["answers"] = [{"answer": f"answer {n}", "answer_id": k, "answer_confidence": "yes"} for k in range(10)]
        yield entry | rest


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    source = tmp_path / "source/vqav2"
    for split, number in (("train", QUESTIONS), ("val", 10)):
        write(source / f"v2_OpenEnded_mscoco_{split}2014_questions.json", "questions", questions(number, False))
        write(source / f"v2_mscoco_{split}2014_annotations.json", "annotations", questions(number, True))
    write(source / "v2_OpenEnded_mscoco_test-dev2015_questions.json", "questions", questions(10, False))
    arguments = ["academic", "--source", tmp_path / "source", "--output", tmp_path / "out", "--tasks", "VQAv2"]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    peak = int(done.stderr.split("peak ")[1])
    assert (tmp_path / f"out/VQAv2_train-{QUESTIONS // EACH}.json").is_file()
    assert peak < LIMIT_MIB
    sys.stdout.write(f"peak memory {peak} MiB\n")
