"""The output head and loss alone, forward and backward: full float32 logits on all positions against our paths.

Command:  python -m benchmarks.loss            (one CPU core; --device cuda for LLaVA-7B's head sizes)
Cost:     about 10 minutes on one core, 8 GB of memory
Result:   benchmarks/results/loss.json; at 5% valid tokens and a vocabulary of 32,000 `select` is at least 10 times
          faster and 10 times smaller than `full`
Each case runs in a process of its own, so that its peak is its own; the peak counts what the head adds to its inputs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.record import save
from transformers_patch.forward import patch_forward

CPU = {"batch": 4, "length": 1024, "hidden": 512, "repeats": 2}
CUDA = {"batch": 16, "length": 2048, "hidden": 4096, "repeats": 10}


class HeadOnly(nn.Module):
    """A model that is nothing but its output head."""

    def __init__(self, hidden: int, vocab: int, **factory: Any) -> None:
        super().__init__()
        self.lm_head = nn.Linear(hidden, vocab, bias=False, **factory)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, hidden: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(hidden))


def measure(impl: str, vocab: int, valid: float, device: str) -> dict[str, float]:
    """Return median seconds of forward and backward, and peak bytes above the inputs and parameters."""
    sizes = CUDA if device == "cuda" else CPU
    torch.manual_seed(0)
    factory = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    model = HeadOnly(sizes["hidden"], vocab, **factory)
    model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
    patch_forward(model, impl)
    hidden = torch.randn(sizes["batch"], sizes["length"], sizes["hidden"], requires_grad=True, **factory)
    hidden.grad = torch.zeros_like(hidden)
    labels = torch.randint(0, vocab, (sizes["batch"], sizes["length"]), device=device)
    labels[torch.rand(labels.shape, device=device) >= valid] = -100
    tasks = torch.zeros(sizes["batch"], dtype=torch.long, device=device)

    def step() -> float:
        start = time.perf_counter()
        model(hidden=hidden, labels=labels, vitw_task_ids=tasks).token_losses.sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else peak_resident()
    step()
    peak = (torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()) - before
    return {"seconds": statistics.median(step() for _ in range(sizes["repeats"])), "peak_bytes": peak}


def peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--vocab", nargs="+", type=int, default=[32_000, 152_000])
    parser.add_argument("--case", nargs=3, metavar=("IMPL", "VOCAB", "VALID"), help="one case, as JSON")
    args = parser.parse_args()
    if args.case:
        torch.set_num_threads(1)
        impl, vocab, valid = args.case
        print(json.dumps(measure(impl, int(vocab), float(valid), args.device)))
        return
    figures = []
    for vocab in args.vocab:
        for valid in (0.05, 0.30):
            cases = {impl: run_case(impl, vocab, valid, args.device) for impl in ("full", "select", "chunked")}
            for impl, case in cases.items():
                row = {"vocab": vocab, "valid": valid, "impl": impl, **case}
                row["times_faster"] = round(cases["full"]["seconds"] / case["seconds"], 1)
                row["times_smaller"] = round(cases["full"]["peak_bytes"] / case["peak_bytes"], 1)
                figures.append(row)
                print(
                    f"vocab {vocab:>6} valid {valid:4.0%} {impl:8} {case['seconds']:8.3f} s "
                    f"{case['peak_bytes'] / 2**20:8.0f} MiB  "
                    f"×{row['times_faster']} faster, ×{row['times_smaller']} smaller"
                )
    sizes = CUDA if args.device == "cuda" else CPU
    name = "loss-gpu" if args.device == "cuda" else "loss"
    print(save(name, figures, device=args.device, threads=1, **sizes))


def run_case(impl: str, vocab: int, valid: float, device: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loss", "--device", device, "--case", impl, str(vocab), str(valid)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
