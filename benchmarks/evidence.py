"""Does the method help, and do its intervals hold? The answer over many seeds, from work folders of `visatb run`.

Command:  python -m benchmarks.evidence run FOLDER --worlds tiny null --seeds 101 102 103
          python -m benchmarks.evidence tables FOLDER [FOLDER ...]
Cost:     `run`, CPU minutes on one core for each seed: tiny 12, null 4, nlvr 25 (and its base once, docs/nlvr.md).
          `tables`: about a minute.
Result:   `run`: FOLDER/WORLD-SEED, a work folder of each world and seed, gone on with where it is not complete; the
          file `all.ok` in it says that it is. `tables`: benchmarks/results/evidence.json, docs/evidence.md's tables
          and docs/images/evidence-*.svg, from the complete folders that are there and from nothing else.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence_tables import write_tables
from eval.files import write_json

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
UNEVEN = {"caption": 1200, "region": 500, "vqa": 1000, "chart": 220, "ground": 500}
"""Training samples of each tiny task in the proportions of ShareGPT4V, RefCOCO, VQAv2, ChartQA and RefCOCO's boxes."""
PAPER = ["STL", "EW", "TLA", "RLW", "DWA", "IGB", "VisATB"]
# World → the example it comes from, and what differs. What a world adds to another one is in evidence_tables.JOINED.
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("tiny", {"methods": PAPER}),
    "tiny_shrunken": ("tiny", {"methods": ["VisATB"], "weighting": {"shrink": "auto"}}),
    "tiny_equal_steps": ("tiny", {"methods": ["STL"], "stl_steps": "equal"}),
    "tiny_sampling": ("tiny", {"methods": ["VisATB"], "weighting": {"apply": "sampling"}}),
    # Four variations that were named here before any of their results were seen: does VisATB beat EW where …
    # … λ is less far from 1, as in Table 8's T = 1.0?
    "tiny_t1": ("tiny", {"methods": ["VisATB"], "weighting": {"temperature": 1.0}}),
    # … difficulty decides a quarter of λ, and not half of it?
    "tiny_alpha": (
        "tiny",
        {"methods": ["VisATB"], "weighting": {"alpha": {"out": 0.5, "in": 0.25, "difficulty": 0.25}}},
    ),
    # … final models see half as much, and are further from what the data can teach?
    "tiny_half": ("tiny", {"methods": ["EW", "VisATB"], "training": {"num_train_epochs": 0.5}}),
    # … tasks are as uneven as the paper's Academic Benchmark (18k to 98k samples)?
    "tiny_uneven": ("tiny", {"methods": ["EW", "VisATB"], "first": UNEVEN}),
    "nlvr": ("nlvr", {"methods": ["STL", "EW", "VisATB"]}),
    "null": ("null", {"methods": ["EW", "VisATB"]}),
}


def experiment(world: str, seed: int, folder: Path) -> dict[str, Any]:
    """The experiment of a world and seed, as a file in `folder` holds it: paths of the example made absolute."""
    example, changes = WORLDS[world]
    content: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text(encoding="utf-8"))
    data = (EXAMPLES / content["data_folder"]).resolve()
    content["image_folder"] = str((data / content["image_folder"]).resolve())
    content["data_folder"] = str(folder.resolve() / f"null-{seed}-data" if world == "null" else data)
    content["model"]["path"] = str((EXAMPLES / content["model"]["path"]).resolve())
    content |= {key: value for key, value in changes.items() if not isinstance(value, dict)}
    for key, value in changes.items():
        if isinstance(value, dict) and key != "first":
            content[key] = {**content.get(key, {}), **value}
    for task, count in changes.get("first", {}).items():
        content["tasks"][task]["train"] = str(_first(folder, Path(content["tasks"][task]["train"]), count))
    content["subsets"] = {**content["subsets"], "seed": seed}
    return {**content, "name": f"{world} {seed}", "seed": seed}


def _first(folder: Path, file: Path, count: int) -> Path:
    """Where the first `count` records of a data file go."""
    return folder.resolve() / f"{file.stem}-first-{count}.json"


def prepare(world: str, seed: int, folder: Path) -> None:
    """Make the data of a world where it is not there; every seed of the null world has a split of its own."""
    if world == "nlvr":
        return  # its source and its base are the user's to get (docs/nlvr.md); `visatb run` says what is missing
    if world != "null":
        visatb("prepare", "tiny", "--output", str(ROOT / "data" / "tiny"))
        for task, count in WORLDS[world][1].get("first", {}).items():
            [file] = (ROOT / "data" / "tiny").glob(f"{task}_train-*.json")
            write_json(_first(folder, file, count), json.loads(file.read_text(encoding="utf-8"))[:count])
        return
    visatb("prepare", "tiny", "--scale", "2", "--output", str(ROOT / "data" / "tiny-2"))
    draft = folder / f"null-{seed}-data.yaml"
    if not draft.exists():
        visatb("init", str(ROOT / "data/tiny-2"), "--null", "vqa", "--seed", str(seed), "--output", str(draft))


def visatb(*words: str) -> None:
    """Run a command of ours; CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "visatb.cli", *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def run(folder: Path, worlds: list[str], seeds: list[int], jobs: int) -> None:
    """Make the work folders that are not complete, world by world and seed by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for world in worlds:
        for seed in seeds:
            workdir = folder.resolve() / f"{world}-{seed}"
            if (workdir / "all.ok").exists():
                continue
            prepare(world, seed, folder)
            file = workdir.with_suffix(".yaml")
            file.write_text(yaml.safe_dump(experiment(world, seed, folder), sort_keys=False), encoding="utf-8")
            visatb("run", str(file), "--workdir", str(workdir), "--jobs", str(jobs))
            (workdir / "all.ok").touch()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("run", help="make the work folders that are not complete")
    making.add_argument("folder", type=Path)
    making.add_argument("--worlds", nargs="+", default=["tiny", "null"], choices=list(WORLDS))
    making.add_argument("--seeds", nargs="+", type=int, required=True)
    making.add_argument("--jobs", type=int, default=1, help="jobs at once (default 1)")
    reading = commands.add_parser("tables", help="read the complete ones and write tables and pictures")
    reading.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args(argv)
    if args.command == "run":
        run(args.folder, args.worlds, args.seeds, args.jobs)
        return
    try:
        print(write_tables(args.folders))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    # λ is computed again from pieces of many runs: what is doubtful of each stands in its own work folder.
    logging.getLogger("weighting_visatb").setLevel(logging.ERROR)
    main()
