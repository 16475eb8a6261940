"""Each file of `visatb export`, read by the real parser of its trainer, in an environment that has it.

Command:  python -m benchmarks.exports TRAINER [--output RESULTS.json]
Cost:     seconds
Result:   benchmarks/results/exports.json: of each trainer the version, what its parser read, and how far the shares
          that its own mixing drew from data of known size lie from those that the weights ask for.
The trainers need other versions of the same packages. Each is run by the Python of its own environment, which needs
nothing of ours but this checkout on its path; the figures of all are kept in one file. Of LLaMA-Factory and xtuner the
modules that read the file are taken alone, without all that their packages import.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import runpy
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

WEIGHTS = {"caption": 0.55, "chart": 1.6, "vqa": 0.85}
COUNTS = {"caption": 4000, "chart": 3000, "vqa": 5000}
MODULES = {"ms-swift": "swift", "llama-factory": "llamafactory"}
"""What a trainer is imported as, where that is not its name."""


def export(trainer: str, folder: Path) -> Path:
    """The file that the command writes for three tasks."""
    from visatb.commands.export import main

    (folder / "weights.json").write_text(json.dumps({"tasks": list(WEIGHTS), "weights": WEIGHTS}))
    words = [str(folder / "weights.json"), "--to", trainer, "--output", str(folder / "mixture"), "--data"]
    for task, count in COUNTS.items():
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
        rows = [{"id": f"{task}-{i}", "conversations": turns} for i in range(count)]
        (folder / f"{task}.json").write_text(json.dumps(rows))
        words.append(f"{task}={folder / task}.json")
    if main(words):
        raise SystemExit(2)
    return folder / "mixture"


def rows_of(folder: Path) -> list[Any]:
    from datasets import load_dataset

    return [load_dataset("json", data_files=str(folder / f"{task}.json"), split="train") for task in WEIGHTS]


def bare(*packages: str) -> None:
    """Make packages importable without what their __init__ imports, so that one module of theirs can be had alone."""
    for name in packages:
        parent, _, last = name.rpartition(".")
        spec = importlib.util.find_spec(name) if not parent else None
        places = (
            spec.submodule_search_locations if spec else [f"{place}/{last}" for place in sys.modules[parent].__path__]
        )
        module = types.ModuleType(name)
        module.__path__ = list(places or [])
        sys.modules[name] = module


def trl(file: Path) -> list[str]:
    """Ids of the data set that the file makes."""
    return list(runpy.run_path(str(file))["train_dataset"]()["id"])


def llama_factory(file: Path) -> list[str]:
    """Ids after its arguments' parser and its own merging."""
    import yaml

    bare("llamafactory", "llamafactory.data", "llamafactory.hparams")
    from llamafactory.data.data_utils import merge_dataset
    from llamafactory.hparams.data_args import DataArguments

    arguments = DataArguments(**yaml.safe_load(file.read_text()))
    assert arguments.dataset == list(WEIGHTS)
    return list(merge_dataset(rows_of(file.parent), arguments, seed=42)["id"])


def ms_swift(file: Path) -> list[str]:
    """Ids after its reading of a configuration, its arguments' parser and its own loader's mixing."""
    from swift.arguments.base_args.data_args import DataArguments
    from swift.cli.main import parse_yaml_args
    from swift.dataset.loader import DatasetLoader
    from transformers import HfArgumentParser

    words = [str(file.rename(file.with_suffix(".yaml")))]
    parse_yaml_args(words)
    [arguments] = HfArgumentParser([DataArguments]).parse_args_into_dataclasses(words)
    assert [Path(name).stem for name in arguments.dataset] == list(WEIGHTS)
    rows = rows_of(file.parent)
    strategy = {"seed": 42, "stopping_strategy": arguments.stopping_strategy}
    return list(DatasetLoader.interleave_datasets(rows, arguments.interleave_prob, **strategy)["id"])


def axolotl(file: Path) -> list[str]:
    """Ids of the entries that its schema read, each file or shard as its loader takes it."""
    import yaml
    from axolotl.utils.schemas.datasets import SFTDataset

    found = []
    for entry in (SFTDataset(**entry) for entry in yaml.safe_load(file.read_text())["datasets"]):
        from datasets import load_dataset

        rows = load_dataset(entry.ds_type, data_files=entry.path, split="train")
        if entry.shards:
            rows = rows.shard(num_shards=entry.shards, index=entry.shards_idx)
        found += rows["id"]
    return found


def xtuner(file: Path) -> list[str]:
    """Ids that its own loader takes."""
    bare("xtuner")
    importlib.import_module("xtuner._lite")
    bare("xtuner._lite.datasets", "xtuner._lite.datasets.utils")
    from xtuner._lite.datasets.utils.load import load_local_datasets

    given = runpy.run_path(str(file))
    loaded = load_local_datasets(given["PATHS"], [".json"], sample_ratios=given["SAMPLE_RATIOS"])
    return [f"{Path(part.path).stem}-{index}" for part in loaded for index in part.sampled]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "trl": trl,
    "axolotl": axolotl,
    "ms-swift": ms_swift,
    "llama-factory": llama_factory,
    "xtuner": xtuner,
}


def read(trainer: str) -> dict[str, Any]:
    """What a trainer made of its file: draws, shares of the tasks, and how far these are from those wanted at most."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Counter(name.rpartition("-")[0] for name in READERS[trainer](export(trainer, Path(folder))))
    total, mass = sum(drawn.values()), sum(WEIGHTS[task] * COUNTS[task] for task in WEIGHTS)
    shares = {task: drawn[task] / total for task in WEIGHTS}
    wanted = {task: WEIGHTS[task] * COUNTS[task] / mass for task in WEIGHTS}
    off = max(abs(shares[task] - wanted[task]) for task in WEIGHTS)
    return {
        "version": metadata.version(trainer.replace("llama-factory", "llamafactory")),
        "draws": total,
        "shares": shares,
        "off": off,
    }


def installed(trainer: str) -> bool:
    """Whether the trainer can be imported here."""
    return importlib.util.find_spec(MODULES.get(trainer, trainer)) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=list(READERS))
    parser.add_argument("--output", type=Path, help="the file of results, whose other trainers stay as they are")
    args = parser.parse_args()
    found = read(args.trainer)
    print(json.dumps(found, indent=2))
    if args.output:
        kept: Mapping[str, Any] = json.loads(args.output.read_text()) if args.output.is_file() else {}
        settings = {"weights": WEIGHTS, "records": COUNTS}
        figures = {**kept.get("figures", {}), args.trainer: found}
        content = {"benchmark": "exports", "settings": settings, "figures": dict(sorted(figures.items()))}
        args.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
