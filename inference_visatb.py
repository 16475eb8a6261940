"""Answer question files with a checkpoint: `{question file}_{model}.json` in the answers folder for each.

    python inference_visatb.py --model-path CHECKPOINT --image-folder IMAGES \\
        --question-file vqa_val-1000.json gqa_val-1000.json --answers-folder answers
    torchrun --nproc_per_node 8 inference_visatb.py …       # the same files, eight times as fast

A question file is a JSON list of records with exactly one human/assistant pair. The answer file holds the same records
with the answer in `conversations[1].generative_value`. It appears when it is complete; until then answers are kept in a
journal beside it, and the same command goes on from there after a kill.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from eval.errors import bad_input


def parser() -> argparse.ArgumentParser:
    """The command line; every option is known by its dashed and its underscored spelling."""
    made = argparse.ArgumentParser(
        prog="inference_visatb.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, **options: object) -> None:
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}", f"--{name.replace('_', '-')}"])
        made.add_argument(*spellings, **options)  # type: ignore[arg-type]

    add("model-path", required=True, help="checkpoint: transformers' or original LLaVA's layout, or a LoRA adapter")
    add("model-base", help="base of an adapter, if not where its configuration says")
    add("model-name", help="name in answers and file names (default: the checkpoint folder's)")
    add("question-file", required=True, nargs="+", metavar="FILE", help="JSON or JSON lines; one or several")
    add("image-folder", help="folder that image paths are relative to")
    add("answers-folder", required=True, help="where answer files go")
    add("conv-mode", help="conversation template (default: the one saved with the checkpoint)")
    add("num-chunks", type=int, default=1, help="share the questions among this many runs of this command")
    add("chunk-idx", type=int, default=0, help="which of them this is, from 0; the last to end joins the answers")
    add("temperature", type=float, default=0.0, help="0: greedy (default)")
    add("top_p", type=float, help="nucleus sampling, with a temperature above 0")
    add("num_beams", type=int, default=1, help="beam search (default: 1, none)")
    add("max_new_tokens", type=int, default=1024, help="longest answer, in tokens (default: 1024)")
    add("batch-size", default="auto", help="answers at once, or auto: as memory allows (default)")
    add("max-samples", type=int, help="answer only the first N questions of each file")
    add("num-workers", type=int, help="processes that read images ahead (default: by the machine)")
    add(
        "dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="auto: as saved, float32 as bfloat16 on a GPU; float32 on a CPU",
    )
    add("device", help="cuda, cuda:1, cpu, … (default: this rank's GPU, else the CPU)")
    add("seed", type=int, default=0, help="of sampling (default: 0)")
    add(
        "truth-loss",
        action="store_true",
        help="write no answers but the loss of each record's own answer (metric `loss`): one forward pass a question",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 on bad input."""
    made = parser()
    args = made.parse_args(argv)
    if not 0 <= args.chunk_idx < args.num_chunks:
        made.error(f"--chunk-idx must lie in 0 to {args.num_chunks - 1} (--num-chunks less one), not {args.chunk_idx}")
    if args.batch_size != "auto" and not args.batch_size.isdigit():
        made.error(f"--batch-size must be a number or auto, not {args.batch_size!r}")
    if args.max_samples is not None and args.max_samples < 1:
        made.error(f"--max-samples must be at least 1, not {args.max_samples}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)

    # after the arguments, so that --help and a wrong option answer at once
    from llava.infer.checkpoint import Checkpoint
    from llava.infer.engine import GenerationSettings
    from llava.infer.run import Job, Worker, answer

    worker = Worker.of_this_process(args.chunk_idx, args.num_chunks)
    try:
        settings = GenerationSettings(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            num_beams=args.num_beams,
            batch_size=None if args.batch_size == "auto" else int(args.batch_size),
            num_workers=args.num_workers,
            seed=args.seed,
        )
        job = Job(
            checkpoint=Checkpoint(args.model_path, args.model_base, args.dtype, args.device),
            question_files=args.question_file,
            answers_folder=args.answers_folder,
            image_folder=args.image_folder,
            template=args.conv_mode,
            model_name=args.model_name,
            max_samples=args.max_samples,
            worker=worker,
            settings=settings,
            truth_loss=args.truth_loss,
        )
        paths = answer(job)
    except (ValueError, OSError) as error:
        return bad_input(error)
    if worker.number == 0:
        print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
