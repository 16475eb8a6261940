"""Questions on what the tiny model knows before it is tuned: the alt-text of a picture (`tasks.T.guard`).

    python examples/tiny/make_guard.py --output data/tiny

The base has learned to say alt-text of new pictures: shapes in random order, each with attributes in random order
(docs/tiny.md). A picture's truth is therefore a list of references, drawn as the base's own training texts were. No
picture is one of the tasks'. Takes a second; the same files for the same seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import world

REFERENCES = 8


def write(output: Path, count: int, seed: int) -> Path:
    """Write `count` questions with their pictures; the path of the questions' file."""
    rng = Random(f"guard {seed}")
    folder = output / "alt_text"
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        items, image = world.picture(rng)
        name = f"{folder.name}/{number:04}.png"
        image.save(output / name)
        truths = [world.alt_text(items, rng) for _ in range(REFERENCES)]
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": truths}]
        records.append({"id": f"alt_text-{number}", "image": name, "conversations": turns})
    path = output / f"alt_text_val-{count}.json"
    path.write_text(json.dumps(records, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder of visatb prepare tiny")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write(args.output, args.count, args.seed))


if __name__ == "__main__":
    main()
