"""Samples per second of `llava.infer` against a plain loop that answers one question at a time.

Command:  OMP_NUM_THREADS=1 python -m benchmarks.inference
          python -m benchmarks.inference --model-path llava-1.5-7b-hf --device cuda --dtype float16      (on a GPU)
Cost:     about 2 minutes on one core
Result:   benchmarks/results/inference.json; at least 5 times as fast, all answers equal (in float32)
Without `--model-path` a tiny LLaVA with random weights is made. Questions are of 5 to 60 words, every other one with an
image file; both ways read the same files and write the same number of tokens at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from benchmarks.record import save
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import Request
from llava.model.family import family_of
from llava.model.load import DTYPES
from tests.tiny import tiny_llava

WORDS = ["what", "is", "the", "colour", "of", "this", "small", "red", "square", "in", "picture", "three", "one", "word"]


def make_requests(count: int, folder: Path, rng: np.random.Generator) -> list[Request]:
    """Questions 0 … count−1, the odd ones with an image file of 100 to 400 pixels a side."""
    requests = []
    for number in range(count):
        text = " ".join(rng.choice(WORDS, size=rng.integers(5, 60)))
        images = []
        if number % 2:
            height, width = rng.integers(100, 400, size=2)
            images.append(str(folder / f"{number}.jpg"))
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(images[0])
            text = f"<image>\n{text}"
        requests.append(Request(number, [{"from": "human", "value": text}], images))
    return requests


class TextOnly(LogitsProcessor):
    """The same vocabulary for both ways: rows that stand for no text are never written."""

    def __init__(self, real: int, image_token_id: int) -> None:
        self.real, self.image_token_id = real, image_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.real :] = scores[:, self.image_token_id] = -torch.inf
        return scores


def plain_loop(generator: Generator, requests: list[Request], max_new_tokens: int) -> dict[Any, str]:
    """Open the image, process it, generate, decode; then the next question."""
    model, processor, maker = generator.model, generator.processor, generator.prompts
    real = family_of(model.config).real_vocab_size(model.config) or len(processor.tokenizer)
    only = LogitsProcessorList([TextOnly(real, processor.image_token_id)])
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(generator.end.token_ids),
        pad_token_id=maker.pad_token_id,
    )
    answers = {}
    for request in requests:
        images = [Image.open(file).convert("RGB") for file in request.images]
        counts = iter([processor.num_image_tokens(image.height, image.width) for image in images])
        ids: list[int] = []
        for token in maker.encoder.encode_prompt(request.messages).tolist():
            ids += [token] * (next(counts) if token == processor.image_token_id else 1)
        row = torch.tensor([ids])
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), **processor.row_inputs(row)}
        inputs |= processor.pixel_inputs(images) if images else {}
        inputs = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
        with torch.inference_mode():
            written = model.generate(**inputs, generation_config=config, logits_processor=only)  # type: ignore[operator]
        text = processor.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
        answers[request.id] = generator.end.cut(text)
    return answers


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways in turn, `--rounds` times; medians."""
    if args.model_path is None:
        tiny_llava(folder / "tiny-llava")
        args.model_path = str(folder / "tiny-llava")
    checkpoint = Checkpoint(args.model_path, None, args.dtype, args.device)
    settings = GenerationSettings(max_new_tokens=args.max_new_tokens)
    generator = Generator(checkpoint.model, checkpoint.processor, settings=settings)
    requests = make_requests(args.questions, folder, np.random.default_rng(0))
    plain_loop(generator, requests[:4], 4)  # warm up
    dict(generator.generate(requests[:4]))
    seconds: dict[str, list[float]] = {"plain": [], "batched": []}
    for _ in range(args.rounds):
        start = time.perf_counter()
        plain = plain_loop(generator, requests, args.max_new_tokens)
        middle = time.perf_counter()
        batched = dict(generator.generate(requests))
        seconds["plain"].append(middle - start)
        seconds["batched"].append(time.perf_counter() - middle)
    speed = {way: args.questions / statistics.median(values) for way, values in seconds.items()}
    return {
        "model": checkpoint.name,
        "dtype": str(checkpoint.model.dtype),
        "device": checkpoint.device.type,
        "torch_threads": torch.get_num_threads(),
        "samples_per_second": {way: round(value, 2) for way, value in speed.items()},
        "times_as_fast": round(speed["batched"] / speed["plain"], 2),
        "equal_answers": sum(plain[number] == batched[number] for number in plain),
        "distinct_answers": len(set(plain.values())),
    }


def main() -> int:
    """Measure, keep the result, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", help="a checkpoint (default: a tiny LLaVA made for the purpose)")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    name = "inference-cuda" if figures["device"] == "cuda" else "inference"
    save(name, figures, questions=args.questions, max_new_tokens=args.max_new_tokens, rounds=args.rounds)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
