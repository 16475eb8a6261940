"""Gradient error of the published normalisation (a weighted mean per micro-batch) against the whole step's.

Command:  python -m benchmarks.exactness
Cost:     about 1 minute on one core
Result:   benchmarks/results/exactness.json: ‖g_micro − g_step‖ / ‖g_step‖ over one step of 128 samples, for
          micro-batches of 1 to 64, under VisATB and TLA weights; the tests' tiny LLaVA and five tasks, float64
"""

from __future__ import annotations

import statistics
import tempfile

import torch
import transformers

from benchmarks.record import save
from tests.vitw.workbench import trainer

SAMPLES, SEEDS = 128, 3


def gradient(method: str, norm: str, size: int, seed: int) -> torch.Tensor:
    """Return the gradient of one step of 128 samples, as one vector."""
    with tempfile.TemporaryDirectory() as folder:
        engine = trainer(
            folder,
            method,
            samples=SAMPLES * 2,
            loss_norm=norm,
            seed=seed,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=SAMPLES // size,
        )
    batches, divisor = engine.get_batch_samples(
        iter(engine.get_train_dataloader()), SAMPLES // size, torch.device("cpu")
    )
    for batch in batches:
        engine.compute_loss(engine.model, batch, num_items_in_batch=divisor).backward()
    scale = 1 / len(batches) if norm == "micro_batch" else 1.0
    return scale * torch.cat([p.grad.flatten() for p in engine.model.parameters() if p.grad is not None])


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    figures = []
    for method in ("VisATB", "TLA"):
        exact = {seed: gradient(method, "step", SAMPLES, seed) for seed in range(SEEDS)}
        for size in (1, 2, 4, 8, 16, 32, 64):
            errors = {
                norm: statistics.median(
                    float((gradient(method, norm, size, seed) - exact[seed]).norm() / exact[seed].norm())
                    for seed in range(SEEDS)
                )
                for norm in ("micro_batch", "step")
            }
            figures.append({"method": method, "micro_batch_size": size, **errors})
            print(f"{method:7} micro-batch {size:3}: {errors['micro_batch']:.3f} published, {errors['step']:.1e} ours")
    print(save("exactness", figures, samples=SAMPLES, seeds=SEEDS))


if __name__ == "__main__":
    main()
