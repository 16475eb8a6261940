"""What parts of the program cost in CPU time, beside another checkout of it or beside what does less.

    python -m benchmarks.throughput index --before ../older-checkout

Each figure is CPU time (user and system) of one process with one thread, so that other work on the machine matters
little. Both checkouts run in turn, in fresh processes, `--rounds` times; the result holds the median and the range.
Cost: `index` about 3 CPU minutes, `images` and `start` one, `ranks` (not a time, and of this checkout alone) seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__:
    from benchmarks.record import save
else:  # run as a file by the process itself, on the path of the checkout that is measured
    sys.path.append(str(Path(__file__).parent.parent))

HERE = Path(__file__).resolve().parent.parent
RECORDS = 12_000
ANSWER = "figures: "


def cpu() -> float:
    return time.process_time()


# ---- parts: each is run in a fresh process and returns {figure: number}


def index(folder: Path) -> dict[str, float]:
    """CPU µs a record of building the index in one process: few images for all records, and one for each."""
    from benchmarks.data import index_settings, make_processor
    from llava.data.index import build_index

    figures = {}
    for images in ("shared", "own"):
        processor = make_processor(folder / images / "tokenizer")
        with tempfile.TemporaryDirectory() as cache:
            start = cpu()
            build_index(
                [folder / images / "data.json"], index_settings(processor, folder / images), cache, num_workers=1
            )
            figures[f"µs a record, {images} images"] = (cpu() - start) / RECORDS * 1e6
    return figures


def index_map(folder: Path) -> dict[str, float]:
    """The same with `datasets.map`: tokens, labels and image sizes, but no check of any record."""
    from datasets import Dataset, disable_progress_bars
    from PIL import Image

    from benchmarks.data import make_processor

    disable_progress_bars()
    figures = {}
    for images in ("shared", "own"):
        tokenizer = make_processor(folder / images / "tokenizer").tokenizer
        sizes: dict[str, tuple[int, int]] = {}

        def size(path: str | None, root: Path = folder / images / "images", known: Any = sizes) -> list[int]:
            if path is None:
                return []
            if path not in known:
                with Image.open(root / path) as image:
                    known[path] = image.size
            return list(known[path])

        def encode(batch: dict[str, list[Any]], tokenizer: Any = tokenizer, size: Any = size) -> dict[str, list[Any]]:
            texts, spans = [], []
            for turns in batch["conversations"]:
                text, of_text = SYSTEM, []
                for turn in turns:
                    text += " USER: " + turn["value"] if turn["from"] == "human" else " ASSISTANT: "
                    if turn["from"] == "gpt":
                        of_text.append((len(text), len(text) + len(turn["value"]) + 4))
                        text += turn["value"] + "</s>"
                texts.append(text)
                spans.append(of_text)
            out = tokenizer(texts, return_offsets_mapping=True)
            labels = [
                [
                    token if any(begin < end <= last for begin, last in of_text) else -100
                    for token, (_, end) in zip(ids, offsets, strict=True)
                ]
                for ids, offsets, of_text in zip(out["input_ids"], out["offset_mapping"], spans, strict=True)
            ]
            return {"input_ids": out["input_ids"], "labels": labels, "sizes": [size(path) for path in batch["image"]]}

        with tempfile.TemporaryDirectory() as cache:
            start = cpu()
            records = json.loads((folder / images / "data.json").read_text())
            data = Dataset.from_list([{"image": None, **record} for record in records])
            data.map(
                encode,
                batched=True,
                batch_size=512,
                remove_columns=data.column_names,
                cache_file_name=f"{cache}/x.arrow",
            )
            figures[f"µs a record, {images} images"] = (cpu() - start) / RECORDS * 1e6
    return figures


def images(folder: Path) -> dict[str, float]:
    """CPU ms an image of what LLaVA-1.5 does to pixels, without the decoding of the file."""
    import numpy as np
    from PIL import Image

    from benchmarks.data import make_processor

    processor = make_processor(folder / "tokenizer")
    random = np.random.default_rng(0)
    figures = {}
    for height, width, times in ((480, 640, 20), (768, 1024, 12), (1536, 2048, 6)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        processor.pixel_inputs([image])
        start = cpu()
        for _ in range(times):
            processor.pixel_inputs([image])
        figures[f"ms an image of {width} × {height}"] = (cpu() - start) / times * 1e3
    return figures


def start(folder: Path) -> dict[str, float]:
    """CPU s of the training command's help, and of a flag that nobody knows."""
    figures = {}
    slip = ["--model_name_or_path", "m", "--data_path", __file__, "--output_dir", str(folder / "o"), "--lora_alfa", "8"]
    for name, words in (("help", ["--help"]), ("an unknown flag", slip)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "llava.train.train", *words], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures[f"s, {name}"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


def ranks(folder: Path) -> dict[str, float]:
    """Tokens of the slowest rank ÷ the mean, 8 ranks of 16 samples without padding: as they came, and dealt.

    Lengths are like those of LLaVA's data: 70% with an image of 576 tokens, and a text of 120 tokens in the mean; the
    steps hold one kind, longest first, as `--group_by_modality_length` has them.
    """
    import numpy as np

    from llava.data.order import ModalityLengthOrder
    from transformers_patch.sampler import EpochBatchSampler

    random = np.random.default_rng(0)
    has_image = random.random(12_800) < 0.7
    lengths = np.where(has_image, 576, 60) + random.gamma(2, 60, len(has_image)).astype(int)
    order = ModalityLengthOrder(lengths, has_image, 128, 0)
    figures = {}
    for name, given in (("in order of length", None), ("dealt", lengths)):
        batches = EpochBatchSampler(order, len(lengths), 16, 8, 128, given)
        work = lengths[np.array(list(batches))].sum(1).reshape(-1, 8)
        figures[f"slowest rank ÷ mean, {name}"] = float((work.max(1) / work.mean(1)).mean())
    return figures


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def make_index_data(folder: Path) -> None:
    from benchmarks.data import write_data

    for name, images in (("shared", 500), ("own", RECORDS)):
        (folder / name).mkdir()
        write_data(folder / name, RECORDS, images)


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {
    part.__name__: part for part in (index, index_map, images, start, ranks)
}
BESIDE = {"index": "index_map"}
"""What is measured in turn with a part, in this checkout."""
PREPARE: dict[str, Callable[[Path], None]] = {"index": make_index_data}


# ---- turns


def in_turn(part: str, before: Path | None, rounds: int) -> dict[str, dict[str, Any]]:
    """{which: {figure: median and range}} of this checkout, the one before, and what is measured beside them."""
    runs = {"now": (HERE, part)}
    if before is not None:
        runs["before"] = (before.resolve(), part)
    if part in BESIDE:
        runs[BESIDE[part]] = (HERE, BESIDE[part])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        PREPARE.get(part, lambda _: None)(Path(folder))
        for number in range(rounds):
            for name in list(runs)[:: 1 if number % 2 else -1]:
                found[name].append(one(*runs[name], Path(folder)))
    return {name: summary(of_runs) for name, of_runs in found.items()}


def one(checkout: Path, part: str, folder: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).resolve()), part, "--one", str(folder)]
    run = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{part} in {checkout} failed:\n{run.stderr[-3000:]}")
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith(ANSWER)).removeprefix(ANSWER))


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: {"median": round(statistics.median(values), 4), "range": [round(min(values), 4), round(max(values), 4)]}
        for name in runs[0]
        if (values := [run[name] for run in runs])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS])
    parser.add_argument("--before", type=Path, help="another checkout, to be measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(ANSWER + json.dumps(PARTS[arguments.part](arguments.one)))
        return
    figures = in_turn(arguments.part, arguments.before, arguments.rounds)
    save(f"throughput-{arguments.part}", figures, rounds=arguments.rounds, load_average=round(os.getloadavg()[0], 1))
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
