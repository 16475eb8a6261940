"""What the data index costs: building it, starting from it, and memory per rank; beside loading the JSON in every rank.

    python -m benchmarks.data

Cost: about 5 minutes on 2 CPU cores of their own, 2 GB of disk and 3 GB of memory (for the comparison with json.load).
Expected: start-up from the index in seconds, most of it the hash of the JSON and the look for every image; each further
rank's own memory grows by tens of MB, where loading the JSON takes GBs.

Data are synthetic: 70% of the records have one of `--images` images; 1 or 2 rounds, questions and answers of 1 to 10
words.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.record import save

TASKS = ["vqa", "caption", "grounding", "ocr", "chat"]
SAMPLES_READ = 2000
MIB = 1 << 20


def write_data(folder: Path, num_records: int, num_images: int, seed: int = 0) -> Path:
    """`num_records` records in one JSON array, and their images."""
    choose = random.Random(seed)
    words = ["".join(choose.choices("aeioubcdfghlmnprst", k=choose.randint(2, 9))) for _ in range(5000)]
    for number in range(num_images):
        path = folder / "images" / f"{number % 50:02}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (choose.randint(200, 640), choose.randint(200, 640)), (number % 256, 90, 30)).save(path)

    def text(most: int) -> str:
        return " ".join(choose.choices(words, k=choose.randint(1, most)))

    def one(number: int) -> dict[str, Any]:
        record: dict[str, Any] = {"id": f"{number:07}", "task": TASKS[number % len(TASKS)], "conversations": []}
        for turn in range(1 + (number % 5 == 0)):
            mark = "<image>\n" if turn == 0 and number % 10 < 7 else ""
            record["conversations"] += [
                {"from": "human", "value": f"{mark}{text(10)}?"},
                {"from": "gpt", "value": f"{text(10)}."},
            ]
        if number % 10 < 7:
            image = choose.randrange(num_images)
            record["image"] = f"{image % 50:02}/{image:06}.jpg"
        return record

    path = folder / "data.json"
    unfinished = folder / "data.tmp"
    with open(unfinished, "w") as file:
        for number in range(num_records):
            file.write((",\n" if number else "[") + json.dumps(one(number)))
        file.write("]")
    os.replace(unfinished, path)
    return path


def make_processor(folder: Path) -> Any:
    """LLaVA-1.5's arithmetic (576 tokens an image) with a Llama-type tokenizer of 32,000 tokens; no model."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlamaTokenizer, LlavaConfig

    from llava.model.families.llava import LlavaSquareProcessor, square_image_processor

    folder.mkdir(exist_ok=True)
    file = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    shutil.copy(Path(str(file)), folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14),
        text_config=LlamaConfig(vocab_size=32064),
        image_token_index=32001,
    )
    return LlavaSquareProcessor(tokenizer, square_image_processor(336), config)


def memory() -> dict[str, float]:
    """MiB of this process: resident, its share of shared pages counted, and what is its alone."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    amount = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    own = amount["Private_Clean"] + amount["Private_Dirty"]
    return {"rss": round(amount["Rss"]), "pss": round(amount["Pss"]), "own": round(own)}


def in_fresh_processes(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of `work` in `count` processes at a time, which wait for each other before they end."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=_run, args=(work, sender, barrier, *args)) for _, sender in pipes]
    for process in processes:
        process.start()
    results = []
    for (receiver, sender), process in zip(pipes, processes, strict=True):
        sender.close()
        results.append(receiver.recv())
        process.join()
    return results


def _run(work: Callable[..., Any], sender: Connection, barrier: Any, *args: Any) -> None:
    sender.send(work(barrier, *args))


def index_settings(processor: Any, folder: Path) -> Any:
    from llava.data.index_rows import IndexSettings

    return IndexSettings(processor, "v1", 2048, str(folder / "images"), tuple(TASKS))


def measure_build(barrier: Any, data: Path, folder: Path, workers: int) -> dict[str, float]:
    from llava.data.index import build_index

    processor = make_processor(folder / "tokenizer")
    before = memory()
    start = time.perf_counter()
    build_index([data], index_settings(processor, folder), folder / "cache", num_workers=workers)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 1), "peak_rss_mib_above_imports": round(peak - before["rss"])}


def measure_rank(barrier: Any, data: Path, folder: Path) -> dict[str, Any]:
    """Start from the finished index, then read samples as training does (text only: pixels are not the index's)."""
    from llava.data.dataset import InstructionDataset
    from llava.data.index import build_index

    processor = make_processor(folder / "tokenizer")
    before = memory()
    start = time.perf_counter()
    index = build_index([data], index_settings(processor, folder), folder / "cache")
    found = time.perf_counter()
    dataset = InstructionDataset(index, folder / "images", processor)
    opened = time.perf_counter()
    barrier.wait()
    after_opening = memory()
    choose = random.Random(os.getpid())
    reading = time.perf_counter()
    for _ in range(SAMPLES_READ):
        dataset.store[choose.randrange(len(dataset))]
    read = time.perf_counter()
    barrier.wait()
    after_reading = memory()
    barrier.wait()
    return {
        "samples": len(dataset),
        "seconds_find_index": round(found - start, 2),
        "seconds_open_dataset": round(opened - found, 3),
        "microseconds_per_sample": round((read - reading) / SAMPLES_READ * 1e6, 1),
        "mib_added_by_opening": {name: after_opening[name] - before[name] for name in before},
        "mib_added_in_all": {name: after_reading[name] - before[name] for name in before},
    }


def measure_json(barrier: Any, data: Path) -> dict[str, Any]:
    """What a rank pays that loads the whole file."""
    before = memory()
    start = time.perf_counter()
    with open(data) as file:
        records = json.load(file)
    seconds = time.perf_counter() - start
    after = memory()
    return {
        "samples": len(records),
        "seconds": round(seconds, 1),
        "mib_added": {name: after[name] - before[name] for name in before},
    }


def run(folder: Path, records: int, images: int, workers: int) -> dict[str, Any]:
    data = folder / "data.json"
    if not data.exists():
        write_data(folder, records, images)
    before = os.getloadavg()[0]
    [build] = in_fresh_processes(1, measure_build, data, folder, workers)
    index = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return {
        "load_average_before_and_after_build": [round(before, 1), round(os.getloadavg()[0], 1)],
        "json_mib": round(data.stat().st_size / MIB),
        "index_mib": round(index / MIB),
        "build": build,
        "one_rank": in_fresh_processes(1, measure_rank, data, folder),
        "two_ranks": in_fresh_processes(2, measure_rank, data, folder),
        "json_load": in_fresh_processes(1, measure_json, data),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_200_000)
    parser.add_argument("--images", type=int, default=20_000, help="image files that the records share")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where data and index are made and left (default: a temporary one)")
    arguments = parser.parse_args()
    settings = {"records": arguments.records, "images": arguments.images, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(arguments.folder or Path(temporary), **settings)
    used = {
        f"{name}_version": importlib.metadata.version(name) for name in ("pyarrow", "ijson", "tokenizers", "pillow")
    }
    save("data", figures, **settings, **used)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
