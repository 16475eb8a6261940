"""`visatb export`: λ as the mixing ratios of other trainers, each in a file that it reads itself (docs/trainers.md).

Legend: M_f records of data file f, λ_f the weight of its task. A trainer without weights that draws file f with the
probability λ_f M_f / Σ λ M sees each of its records in proportion to λ_f. Where it then takes the mean over all tokens
of an optimizer step, the expected gradient tends to that of Equation 2 as the step grows. `WeightedOrder` has the
proof, and the one sample per step that makes it exact; no other trainer's settings can say that.

A format is one function here and one line in `FORMATS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from eval.answers import safe_name
from llava.data.errors import DataError
from visatb.experiment import records

LARGEST_DENOMINATOR = 12
"""Axolotl's ratios are made of whole data sets and of twelfths or larger parts of one."""


@dataclass(frozen=True)
class Part:
    """A data file: the name that it goes by, its records, and the weight of its task."""

    name: str
    task: str
    path: str
    count: int
    weight: float


@dataclass(frozen=True)
class Mixture:
    """The data files that are mixed."""

    parts: Sequence[Part]

    @property
    def total(self) -> int:
        """All records, which is the length of an epoch."""
        return sum(part.count for part in self.parts)

    @property
    def probabilities(self) -> list[float]:
        """Of drawing each file; they sum to 1."""
        mass = [part.weight * part.count for part in self.parts]
        return [value / sum(mass) for value in mass]

    @property
    def ratios(self) -> list[float]:
        """How often each file's records come in an epoch of `total` draws."""
        mass = sum(part.weight * part.count for part in self.parts)
        return [part.weight * self.total / mass for part in self.parts]


def read_mixture(weights: Mapping[str, float], files: Mapping[str, Sequence[str]]) -> Mixture:
    """Count the records of each task's data files.

    Raises:
        DataError: a task without a weight or a weight without data, a file that cannot be read, nothing to mix.
    """
    missing = [task for task in weights if not files.get(task)]
    unknown = [task for task in files if task not in weights]
    if missing or unknown:
        raise DataError(f"weights and data do not fit: no data for {missing}, no weight for {unknown}")
    parts = []
    for task, paths in files.items():
        for number, path in enumerate(paths, start=1):
            name = safe_name(task) if len(paths) == 1 else f"{safe_name(task)}-{number}"
            parts.append(Part(name, task, str(Path(path).absolute()), records.count([path]), weights[task]))
    drawn = [part for part in parts if part.weight > 0 and part.count]
    if len(drawn) < 2:
        raise DataError(f"there is nothing to mix: {len(drawn)} data files have records and a weight above 0")
    return Mixture(drawn)


def _head(mixture: Mixture, of_trainer: Sequence[str]) -> list[str]:
    """What is exact about the file, and what is not; lines without comment marks."""
    weights = {part.task: part.weight for part in mixture.parts}
    lines = ["Task weights of VisATB as mixing ratios: " + ", ".join(f"{t} {w:.4g}" for t, w in weights.items()) + "."]
    lines += [
        "Exact: a record is drawn in proportion to its task's weight, in expectation.",
        "Not exact: the loss. It has no weights, and its divisor is the trainer's own count of tokens.",
        "  With one divisor for a whole optimizer step, the expected gradient is off by the order of 1 / its samples.",
        "  With one for each micro-batch, or a mean for each sample, short answers weigh more than in Equation 2.",
        "  A step's share of tokens is as the draws have it, where the weighted loss would hold it to the weights.",
    ]
    return [*lines, *of_trainer]


def _until_all_are_through(mixture: Mixture) -> list[str]:
    return [
        f"Mixed until every file is through, which is longer than the {mixture.total} records of one epoch:",
        f"  set max_steps to {mixture.total} / samples of a step for as much training as without mixing.",
    ]


def _python_list(mixture: Mixture) -> str:
    """The files' paths as Python writes a list."""
    return "[\n" + "".join(f"    {json.dumps(part.path)},  # {part.name}\n" for part in mixture.parts) + "]"


def _comment(lines: Sequence[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def trl(mixture: Mixture) -> str:
    """A Python file with `train_dataset`, for `datasets.interleave_datasets`."""
    head = _head(
        mixture,
        [
            "The epoch holds as many draws as there are records. Within a file, none comes twice before all have come.",
            "TRL can do better: the exact weighted loss is a mix-in (docs/trainers.md).",
        ],
    )
    return (
        f"{_comment(head)}from datasets import interleave_datasets, load_dataset\n\n"
        f"FILES = {_python_list(mixture)}\nPROBABILITIES = {mixture.probabilities}\nRECORDS = {mixture.total}\n\n\n"
        "def load(file):\n"
        '    """The data set of a file; put your own here where the records need another form."""\n'
        '    return load_dataset("json", data_files=file, split="train")\n\n\n'
        "def train_dataset(seed=42, load=load):\n"
        '    """The mixture, as long as all files together."""\n'
        "    parts = [load(file).shuffle(seed=seed) for file in FILES]\n"
        "    mixed = interleave_datasets(\n"
        '        parts, probabilities=PROBABILITIES, seed=seed, stopping_strategy="all_exhausted"\n'
        "    )\n"
        "    return mixed.select(range(RECORDS))\n"
    )


def llama_factory(mixture: Mixture) -> str:
    """Keys of a YAML file of arguments."""
    head = _head(
        mixture,
        [
            *_until_all_are_through(mixture),
            "Each name must stand in your dataset_info.json:",
            *(f"  {part.name}: {part.path}" for part in mixture.parts),
        ],
    )
    names = ",".join(part.name for part in mixture.parts)
    probabilities = ",".join(map(repr, mixture.probabilities))
    return f"{_comment(head)}dataset: {names}\nmix_strategy: interleave_over\ninterleave_probs: {probabilities}\n"


def ms_swift(mixture: Mixture) -> str:
    """A YAML file for `swift sft FILE.yaml`, to be completed by model and training arguments."""
    head = _head(mixture, _until_all_are_through(mixture))
    files = "".join(f"  - {json.dumps(part.path, ensure_ascii=False)}\n" for part in mixture.parts)
    probabilities = "".join(f"  - {value!r}\n" for value in mixture.probabilities)
    return f"{_comment(head)}dataset:\n{files}interleave_prob:\n{probabilities}stopping_strategy: all_exhausted\n"


def axolotl(mixture: Mixture) -> str:
    """The `datasets` of a configuration: axolotl has no ratios, but takes a file several times, or a shard of it."""
    head = _head(
        mixture,
        [
            "Axolotl has no mixing ratios. A file stands here as often as its ratio says, its last part as shards.",
            f"Ratios are rounded to parts of 1/{LARGEST_DENOMINATOR} and larger; each file says what its own came to.",
            "Shards are the same records in every epoch. dataset_exact_deduplication must stay off.",
            "Add the type of your data to each entry.",
        ],
    )
    lines = ["datasets:"]
    for part, ratio in zip(mixture.parts, mixture.ratios, strict=True):
        rounded = Fraction(ratio).limit_denominator(LARGEST_DENOMINATOR) or Fraction(1, LARGEST_DENOMINATOR)
        lines.append(f"  # {part.name}: {float(rounded):.3f} times, wanted {ratio:.3f}")
        entry = [f"  - path: {json.dumps(part.path, ensure_ascii=False)}", "    ds_type: json"]
        whole, rest = divmod(rounded.numerator, rounded.denominator)
        lines += entry * whole
        for shard in range(rest):
            lines += [*entry, f"    shards: {rounded.denominator}", f"    shards_idx: {shard}"]
    return f"{_comment(head)}" + "\n".join(lines) + "\nshuffle_merged_datasets: true\n"


def xtuner(mixture: Mixture) -> str:
    """A Python file with paths and `sample_ratios`, for `load_datasets`."""
    head = _head(
        mixture,
        [
            "For xtuner._lite.datasets.load_datasets(paths=PATHS, sample_ratios=SAMPLE_RATIOS, …).",
            "A ratio's whole part repeats a file, the rest is a random choice of its records, the same in every epoch.",
        ],
    )
    return f"{_comment(head)}PATHS = {_python_list(mixture)}\nSAMPLE_RATIOS = {mixture.ratios}\n"


FORMATS: dict[str, Callable[[Mixture], str]] = {
    "trl": trl,
    "axolotl": axolotl,
    "ms-swift": ms_swift,
    "llama-factory": llama_factory,
    "xtuner": xtuner,
}
"""Name → mixture → the text of a file."""
