"""The benchmarks by name. A new one is a file with a class, and a line here."""

from __future__ import annotations

from llava.eval.benchmark import Benchmark
from llava.eval.gqa import Gqa
from llava.eval.llava_bench import LlavaBenchCoco, LlavaBenchWild
from llava.eval.mmbench import MMBench, MMBenchCN
from llava.eval.mme import Mme
from llava.eval.mmvet import MMVet
from llava.eval.pope import Pope
from llava.eval.seed import SeedBench
from llava.eval.sqa import ScienceQA
from llava.eval.textvqa import TextVQA
from llava.eval.vizwiz import VizWiz
from llava.eval.vqav2 import VQAv2

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        TextVQA(),
        Pope(),
        Mme(),
        ScienceQA(),
        MMBench(),
        SeedBench(),
        MMVet(),
        MMBenchCN(),
        LlavaBenchWild(),
        LlavaBenchCoco(),
        VQAv2(),
        Gqa(),
        VizWiz(),
    )
}
"""The seven of ΔI_zero first."""
