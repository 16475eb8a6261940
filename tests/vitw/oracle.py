"""An independent, plain float64 training loop: full logits, one batch per step, λ written out as in the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.vitw.workbench import GIVEN, TASKS, Samples, collate, tiny_model
from transformers_patch.sampler import shuffled


def weights_of(method: str, step: int, counts: np.ndarray, history: list[list[tuple[int, float]]]) -> np.ndarray:
    """λ from the (step, mean loss) history of each task; windows as in the workbench: DWA 1, IGB 2."""
    n = len(TASKS)
    if method == "EW":
        return np.ones(n)
    if method == "VisATB":
        return np.array(GIVEN)
    if method == "TLA":
        return np.array([1 / c if c else 0 for c in counts])
    if method == "RLW":
        scores = np.random.default_rng([42, step]).standard_normal(n)
    elif method == "DWA":
        scores = np.array([h[-1][1] / h[-2][1] if len(h) >= 2 else 1.0 for h in history]) / 2.0
    else:
        scores = np.ones(n)
        for k, h in enumerate(history):
            base = [loss for at, loss in h if 2 <= at < 4]
            if step >= 4 and base:
                scores[k] = h[-1][1] / np.mean(base)
    return n * np.exp(scores) / np.exp(scores).sum()


def train(method: str, steps: int = 8, batch: int = 16, lr: float = 1e-2) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the parameters after `steps` AdamW steps and the last λ."""
    model, data = tiny_model(), Samples(128)
    decay = [p for n, p in model.named_parameters() if p.dim() > 1 or ("norm" not in n and not n.endswith("bias"))]
    rest = [p for p in model.parameters() if not any(p is d for d in decay)]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr)
    history: list[list[tuple[int, float]]] = [[] for _ in TASKS]
    order = shuffled(128, seed=42)(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (steps - step) / steps
        inputs = collate([data[i] for i in order[step * batch : (step + 1) * batch]])
        labels, tasks = inputs.pop("labels"), inputs.pop("vitw_task_ids")
        logits = model(**inputs).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        valid = labels[:, 1:] != -100
        sums = [losses[tasks == k][valid[tasks == k]].sum() for k in range(len(TASKS))]
        counts = np.array([valid[tasks == k].sum().item() for k in range(len(TASKS))])
        weights = weights_of(method, step, counts, history)
        loss = sum(w * s for w, s in zip(weights, sums, strict=True)) / float(weights @ counts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for k, count in enumerate(counts):
            if count:
                history[k].append((step, sums[k].item() / count))
    return dict(model.named_parameters()), weights
