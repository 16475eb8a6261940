"""How many small faults, put into the code one by one, the tests do not notice (mutation testing with cosmic-ray).

Command:  pip install cosmic-ray, then python -m benchmarks.mutation [--share 0.1] [--at_most 30] [--modules FILE …]
          in a clean checkout of its own: files are changed while it runs and put back after each trial. Work is kept in
          `--session` (default build/mutation), so that a stopped campaign goes on where it was.
Cost:     a test run per mutant: 5 to 60 CPU seconds
Result:   benchmarks/results/mutation.json: mutants tried, those that survived with file and line; by module. Which of
          the survivors matter is for a reader to judge: `matters` in the file is filled in by hand.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from cosmic_ray.commands import execute, init
from cosmic_ray.config import ConfigDict
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

from benchmarks.record import RESULTS, save

MODULES = {
    "weighting_visatb.py": "tests/weighting",
    "eval/metrics.py": "tests/eval/test_metrics.py tests/eval/test_files.py",
    "eval/scores.py": "tests/eval/test_files.py tests/eval/test_metrics.py tests/weighting/test_command.py",
    "transformers_patch/weighter.py": "tests/vitw/test_weighter.py tests/vitw/test_checkpoint.py",
    "transformers_patch/loss.py": "tests/vitw/test_forward.py",
    "transformers_patch/chunked.py": "tests/vitw/test_chunked.py tests/vitw/test_forward.py",
    # Without what starts processes of its own, which takes minutes: a survivor is to be tried with that by hand.
    **dict.fromkeys(
        ("transformers_patch/mixin.py", "transformers_patch/trainer.py", "transformers_patch/sampler.py"),
        "tests/vitw/test_diverged.py tests/vitw/test_exact.py "
        "-k 'not processes and not zero and not lora and not TLA and not RLW'",
    ),
    "llava/data/template.py": "tests/data/test_template.py tests/data/test_dataset.py",
    "visatb/workflow/keys.py": "tests/workflow/test_keys.py",
    "visatb/workdir/results.py": "tests/workflow/test_run.py",
    **dict.fromkeys(("visatb/workdir/outputs.py", "visatb/workflow/outputs.py"), "tests/workflow/test_damage.py"),
}
# The same program by another name: annotations are not evaluated, and small values are one object.
NOT_TRIED = (
    "core/ReplaceBinaryOperator_BitOr",
    "core/RemoveDecorator",
    *(f"core/ReplaceComparisonOperator_{kind}" for kind in ("Eq_Is", "NotEq_IsNot", "Is_Eq", "IsNot_NotEq")),
)


def campaign(module: str, tests: str, share: float, at_most: int, session: Path) -> dict[str, Any]:
    """Try some of the mutants of a module, chosen by a fixed seed; those of an earlier start are not tried again."""
    config = ConfigDict(
        {
            "module-path": module,
            "timeout": 300.0,
            "excluded-modules": [],
            "test-command": f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}",
            "distributor": {"name": "local"},
        }
    )
    store = session / (module.replace("/", "-") + ".sqlite")
    new = not store.exists()
    with use_db(str(store), WorkDB.Mode.create) as work:
        if new:
            init([Path(module)], work, {})
        items = sorted(work.work_items, key=lambda item: str(item.mutations[0]))
        usable = [item for item in items if not item.mutations[0].operator_name.startswith(NOT_TRIED)]
        chosen = {item.job_id for item in random.Random(0).sample(usable, min(at_most, round(share * len(usable))))}
        done = {job for job, _ in work.results}
        for item in items:
            if item.job_id not in chosen | done:
                work.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
        execute(work, config)
        return {"mutants": len(usable), **summary(work)}


def summary(work: WorkDB) -> dict[str, Any]:
    """Count what was tried; name what survived."""
    mutation = {item.job_id: item.mutations[0] for item in work.work_items}
    tried = [(job, result) for job, result in work.results if result.worker_outcome != WorkerOutcome.SKIPPED]
    survivors = [
        {
            "line": mutation[job].start_pos[0],
            "operator": mutation[job].operator_name.removeprefix("core/"),
            "diff": [
                line for line in (result.diff or "").splitlines() if line[:1] in "+-" and line[:3] not in "---+++"
            ],
        }
        for job, result in tried
        if not result.is_killed
    ]
    return {"tried": len(tried), "survived": len(survivors), "survivors": survivors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="share of the mutants tried (default 0.1)")
    parser.add_argument("--at_most", type=int, default=sys.maxsize, help="number tried of a module (default: any)")
    parser.add_argument("--modules", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--session", type=Path, default=Path("build/mutation"))
    args = parser.parse_args()
    args.session.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / "mutation.json"
    figures = json.loads(kept.read_text())["figures"] if kept.exists() else {}
    for module in args.modules:
        figures[module] = campaign(module, MODULES[module], args.share, args.at_most, args.session)
        save("mutation", figures, share=args.share)
        print(f"{module}: {figures[module]['survived']} of {figures[module]['tried']} survived")


if __name__ == "__main__":
    main()
