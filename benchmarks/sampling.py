"""How much a step's gradient scatters with λ in the loss, and with λ as sampling ratios: on the tiny model.

Command:  python -m benchmarks.sampling WEIGHTS.json [--batches 8 32]
Cost:     about 2 CPU minutes; needs data/tiny (visatb prepare tiny)
Result:   benchmarks/results/sampling.json. `variance`: E‖g − g*‖² / ‖g*‖², where g is the gradient of one step and g*
          Equation 2's over all the samples; `bias`: the same of the mean step, with the part that chance alone gives.
The gradients g_i of 60 samples of each task are taken once, at the base model. A step is a sum of them with factors a,
so that all its norms follow from the n × n products g_i · g_j, for as many steps as wanted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.record import save
from eval.weights import read_weights
from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.data.index import build_index
from llava.data.index_rows import IndexSettings
from llava.model.load import load_model_and_processor
from transformers_patch.loss import valid_targets
from transformers_patch.sampler import WeightedOrder, shuffled

ROOT = Path(__file__).parents[1]
DATA, BASE = ROOT / "data/tiny", ROOT / "examples/tiny/base"
TASKS = ("caption", "region", "vqa", "chart", "ground")
EACH = 60
Floats = npt.NDArray[np.float64]


def dataset(folder: Path, processor: Any) -> InstructionDataset:
    """The first 60 training samples of each task."""
    files = []
    for task in TASKS:
        [source] = DATA.glob(f"{task}_train-*.json")
        records = json.loads(source.read_text())[:EACH]
        files.append(folder / source.name)
        files[-1].write_text(json.dumps([{**record, "task": task} for record in records]))
    settings = IndexSettings(processor, processor.default_template, 192, str(DATA), TASKS, {})
    return InstructionDataset(build_index(files, settings, folder / "index"), DATA, processor)


def products(samples: InstructionDataset, model: torch.nn.Module, processor: Any) -> Floats:
    """float64[n, n]: g_i · g_j over the parameters that learn, language model and projector."""
    collate = Collator(processor, 192)
    learned = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    rows = []
    for index in range(len(samples)):
        batch = collate([samples[index]])
        labels = batch["labels"]
        batch.pop("vitw_task_ids")
        model.zero_grad()
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
        torch.nn.functional.cross_entropy(
            logits[valid_targets(labels)], labels[:, 1:][valid_targets(labels)], reduction="sum"
        ).backward()
        rows.append(torch.cat([p.grad.flatten() for p in learned if p.grad is not None]))
    gradients = torch.stack(rows)
    return (gradients @ gradients.T).double().numpy()


def figures(gram: Floats, whole: Floats, steps: Floats) -> dict[str, float]:
    """Of steps float64[s, n] of factors against those of g*, float64[n]."""

    def square(factors: Floats) -> Floats:
        return np.einsum("...i,ij,...j->...", factors, gram, factors)

    size = float(square(whole))
    variance = float(square(steps - whole).mean()) / size
    mean = float(square(steps.mean(0) - whole)) / size
    return {"variance": variance, "bias": mean**0.5, "bias_of_chance": (variance / len(steps)) ** 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--epochs", type=int, default=400)
    args = parser.parse_args()
    given = read_weights(args.weights)["weights"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor = load_model_and_processor(str(BASE), dtype=torch.float32)
        samples = dataset(Path(folder), processor)
        gram = products(samples, model.eval(), processor)
        tokens, tasks = samples.store.target_tokens(), samples.task_ids
    weights = np.array([given[name] for name in samples.task_names])
    found = {size: compare(gram, weights, tasks, tokens, size, args.epochs) for size in args.batches}
    settings = {"weights": {name: given[name] for name in samples.task_names}, "samples_of_a_task": EACH}
    print(save("sampling", found, epochs=args.epochs, **settings).read_text())


def compare(
    gram: Floats, weights: Floats, tasks: npt.NDArray[Any], tokens: npt.NDArray[Any], size: int, epochs: int
) -> dict[str, Any]:
    """Figures of steps of `size` samples: λ in the loss, λ as sampling ratios, and these by the plain rule."""
    of_samples = weights[tasks]
    whole = of_samples / (of_samples @ tokens)
    count, whole_steps = len(tokens), len(tokens) // size

    def steps(order: Any, factors: Floats) -> Floats:
        rows = []
        for epoch in range(epochs):
            for chosen in order(epoch)[: whole_steps * size].reshape(-1, size):
                row = np.bincount(chosen, minlength=count) * factors
                rows.append(row / (row @ tokens))
        return np.stack(rows)

    random = np.random.default_rng(1)
    by_weight = of_samples / of_samples.sum()
    return {
        "loss": figures(gram, whole, steps(shuffled(count, 0), of_samples)),
        "sampling": figures(gram, whole, steps(WeightedOrder(weights, tasks, tokens, size, 0), np.ones(count))),
        "sampling_by_weight_alone": figures(
            gram, whole, steps(lambda _: random.choice(count, count, p=by_weight), np.ones(count))
        ),
    }


if __name__ == "__main__":
    main()
