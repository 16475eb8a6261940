"""Fine-tune a multimodal model: `python -m llava.train.train --help`, docs/training.md.

Everything that can be wrong with a command line, its files and its data is found before the model is loaded.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from llava.train.usage import answer_or_go_on

    answer_or_go_on(sys.argv[1:])

import logging
import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import LlavaConfig, PreTrainedModel, set_seed
from transformers.utils import logging as hf_logging

from eval.errors import bad_input
from eval.files import write_text
from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.data.errors import DataError
from llava.data.index import build_index, copy_problems
from llava.data.index_rows import IndexSettings
from llava.data.order import ModalityLengthOrder
from llava.disk import write_problem
from llava.model.generic import GenericFamily
from llava.model.projector import projector_type_of
from llava.model.projector_file import PROJECTOR_FILE, write_projector
from llava.model.shards import read_shard, weight_files
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, UsageError, parse_arguments
from llava.train.distributed import all_see, is_main, join_deepspeed, run_on_main
from llava.train.folder import (
    BASE_MODEL,
    CARD,
    DIVERGED,
    PREEMPTED,
    SETTINGS,
    begin,
    inspect,
    publish,
    saving_folder,
    write_json,
)
from llava.train.make_base import make_base
from llava.train.model import adapter_base, add_lora, choose_trainable, keep_masters, load_base, weight_dtype
from llava.train.run_card import all_arguments, describe_files, run_card, run_settings
from llava.train.source import Source, find_source
from llava.train.startup import Prepare, check_loss
from llava.train.tasks import THE_ONE_TASK, TaskTable, read_mapping, resolve_tasks
from llava.train.trainer import LlavaTrainer
from transformers_patch.checkpoint import (
    DivergedError,
    describe_nonfinite,
    last_complete_checkpoint,
)
from transformers_patch.preempt import EXIT_CODE
from transformers_patch.sampler import EpochOrder, WeightedOrder
from transformers_patch.weighter import EqualWeighting

logger = logging.getLogger("llava.train")

SKIPPED = "skipped_records.jsonl"
DIVERGED_CODE = 3
"""Exit code of a training whose loss, gradient or weights are not finite."""


class StoppedError(Exception):
    """SIGTERM before or during training; what was done is saved as far as it can be."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code: 0 done (or done before), 2 bad input, 3 diverged, 143 stopped by SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    set_up_logging()
    try:
        model, data, training = parse_arguments(argv)
        join_deepspeed(training)
        with _writing(Path(training.output_dir or "")):
            run(model, data, training)
    except UsageError as error:
        if is_main():
            return bad_input(error)
    except DataError as error:  # of one rank's samples alone, once training has begun
        sys.stderr.write(f"error: {error}\n")
        traceback.clear_frames(error.__traceback__)  # they hold the data loader, and its workers alive
        return 2
    except StoppedError:
        logger.warning("stopped by SIGTERM; the same command goes on from the last checkpoint")
        return EXIT_CODE
    except DivergedError as error:
        if is_main():
            sys.stderr.write(f"error: {error}\n")
        return DIVERGED_CODE
    return 0


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of writing, the libraries' own included, into a UsageError of one line."""
    try:
        yield
    except (UsageError, DataError, StoppedError):
        raise
    except Exception as error:
        problem = write_problem(error, folder)
        if problem is None:
            raise
        raise UsageError(problem) from error


def run(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Check, prepare, train, save.

    Raises:
        UsageError, DataError: what was asked for cannot be done; raised before the model is loaded.
        StoppedError: on SIGTERM.
        DivergedError: the loss, its gradient or the weights are not finite; no finished model is left.
    """
    tasks = resolve_tasks(data, training)
    _check_processes(training)
    folder = Path(training.output_dir or "")
    files = run_on_main(lambda: describe_files(data.data_path))
    settings = run_settings(model, data, training, tasks, files)
    state = run_on_main(lambda: inspect(folder, settings, training.overwrite_output_dir))
    if state == "finished":
        logger.warning("%s holds this run, finished: nothing to do", folder)
        return
    run_on_main(lambda: _quiet(find_source(model, data, training)))  # downloads, once
    source = find_source(model, data, training)
    train_set = load_data(data.data_path, source, tasks, data, training)
    tasks = tasks.named_as(train_set.task_names, data.num_tasks)
    eval_set = load_data(data.eval_data_path, source, tasks, data, training) if data.eval_data_path else None
    run_on_main(lambda: begin(folder, settings, state))
    if not all_see(folder / SETTINGS):
        raise UsageError(
            f"--output_dir {folder} is not the same folder on all nodes: name one on a disk that they share"
        )

    try:
        trainer = make_trainer(model, data, training, source, tasks, train_set, eval_set)
        trainer.preemption.install()
        result = trainer.train(resume_from_checkpoint=run_on_main(lambda: last_complete_checkpoint(folder)))
        if trainer.state.global_step < trainer.state.max_steps:
            raise StoppedError
        save(trainer, source, model)
        facts = {
            "data": files,
            "index": train_set.store.summary,
            "samples": len(train_set),
            "global_batch_size": training.samples_per_step,
            "world_size": training.world_size,
            "steps": trainer.state.global_step,
            "metrics": result.metrics,
            "task_loss": last_task_losses(trainer.state.log_history),
        }
        if is_main():
            if train_set.store.summary["skipped"]:
                copy_problems(train_set.store.folder, folder / SKIPPED)
            arguments = all_arguments(model, data, training, tasks)
            write_json(folder / CARD, run_card(arguments, settings, tasks, **facts))
            # The last step's checkpoint is the finished model once more, with an optimizer that nobody needs now.
            shutil.rmtree(folder / f"checkpoint-{trainer.state.global_step}", ignore_errors=True)
    except StoppedError:
        if is_main():
            (folder / PREEMPTED).touch()
        raise
    except DivergedError as error:
        if is_main():  # a launcher has exit codes of its own, so that this is how others learn of it
            write_text(folder / DIVERGED, f"{error}\n")
        raise


def _check_processes(training: TrainingArguments) -> None:
    """Refuse what only the started processes can tell; UsageError."""
    if training.n_gpu > 1:
        raise UsageError(
            f"{training.n_gpu} GPUs are visible to one process: start one for each "
            f"(torchrun --nproc_per_node {training.n_gpu} --module llava.train.train …), or set CUDA_VISIBLE_DEVICES"
        )
    try:
        training.check_batch()
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def load_data(
    paths: Sequence[str], source: Source, tasks: TaskTable, data: DataArguments, training: TrainingArguments
) -> InstructionDataset:
    """Index the files on rank 0 (or find their index) and open the index on every rank."""
    cache = Path(data.index_cache_dir or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "visatb" / "index")
    file_tasks = tasks_of_files(paths, data)
    if not tasks.names:
        file_tasks = dict.fromkeys(paths, THE_ONE_TASK) | file_tasks

    def build() -> Path:
        try:
            settings = IndexSettings(
                source.processor,
                source.processor.default_template,
                training.model_max_length,
                data.image_folder,
                tasks.names or None,
                file_tasks,
            )
            skip: Any = data.bad_samples
            return build_index(paths, settings, cache.expanduser(), skip, data.preprocess_workers)
        except ValueError as error:
            raise UsageError(str(error)) from error

    index = run_on_main(build)
    if not index.is_dir():  # another machine, with a cache of its own
        index = build()
    return InstructionDataset(index, data.image_folder, source.processor)


def tasks_of_files(paths: Sequence[str], data: DataArguments) -> dict[str, str]:
    """Return `--file_tasks` of those files that are among `paths`; a file is named by its path or its name."""
    given = read_mapping(data.file_tasks, "--file_tasks") if data.file_tasks else {}
    unknown = set(given) - {
        name for path in [*data.data_path, *data.eval_data_path] for name in (path, Path(path).name)
    }
    if unknown:
        raise UsageError(f"--file_tasks: {', '.join(sorted(unknown))} not among the data files")
    names = {name for path in paths for name in (path, Path(path).name)}
    return {name: task for name, task in given.items() if name in names}


def make_trainer(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    source: Source,
    tasks: TaskTable,
    train_set: InstructionDataset,
    eval_set: InstructionDataset | None,
) -> LlavaTrainer:
    """Load the model, set what learns, and put it all together."""
    folder = Path(training.output_dir or "")
    dtype = weight_dtype(model, training)
    set_seed(training.seed)
    base = run_on_main(lambda: make_base(source, folder, dtype))
    net = load_base(source, base, model, dtype)
    # A cache of keys and values is useless in training, and lets packed samples see each other.
    net.config.get_text_config().use_cache = False
    choose_trainable(net, source.family, model)
    set_seed(training.seed)
    wrapped: PreTrainedModel | PeftModel = net
    if model.lora_enable:
        base_name = adapter_base(source, model, base)
        wrapped = add_lora(net, source.family, model, base_name, one_dtype=training.deepspeed is not None)
    if not training.deepspeed:
        keep_masters(wrapped)
    sampled = data.apply_weights == "sampling"
    units = len(tasks.unit_names)
    flash = "flash" in str(model.attn_implementation)
    packing = data.packing
    if packing is None:  # rows without padding cost nothing there, and every kind of model that bears it gets them
        packing = flash and source.family.why_not_packed(source.processor) is None
    return LlavaTrainer(
        wrapped,
        training,
        family=source.family,
        task_names=tasks.names,
        weighter=EqualWeighting(units) if sampled else training.make_weighter(units, tasks.weights),
        task_units=tasks.units,
        train_order=train_order(data, training, tasks, train_set),
        even_ranks=packing,
        vocab_size=source.family.real_vocab_size(net.config),
        before_first_step=_loss_check(source, training, train_set, packing, str(model.attn_implementation)),
        load_model=lambda path: source.family.load_model(path, dtype=dtype),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=Collator(source.processor, training.model_max_length, packing, flash),
        processing_class=source.processor,
    )


def train_order(
    data: DataArguments, training: TrainingArguments, tasks: TaskTable, train_set: InstructionDataset
) -> EpochOrder | None:
    """The order of each epoch's samples that the arguments ask for, None for the Trainer's own."""
    batch = training.samples_per_step
    if data.apply_weights == "sampling":
        given = tasks.task_weights() or {}
        weights = [given[name] for name in train_set.task_names]
        seed = training.seed if training.data_seed is None else training.data_seed
        return WeightedOrder(weights, train_set.task_ids, train_set.store.target_tokens(), batch, seed)
    if training.group_by_modality_length:
        return ModalityLengthOrder(train_set.lengths, train_set.has_image, batch, training.seed)
    return None


def _loss_check(
    source: Source, training: TrainingArguments, samples: InstructionDataset, packing: bool, attention: str
) -> Callable[[nn.Module, Prepare], None] | None:
    """What holds the weighted loss against the model's own; None for families whose own files have been tested."""
    if not isinstance(source.family, GenericFamily):
        return None
    collator = Collator(source.processor, training.model_max_length, packing, "flash" in attention)
    return lambda net, prepare: check_loss(net, source.family.name, collator, samples, prepare)


def save(trainer: LlavaTrainer, source: Source, model: ModelArguments) -> None:
    """Put the finished model with all that belongs to it into the output folder. Called on every rank."""
    folder = Path(trainer.args.output_dir or "")
    saving = saving_folder(folder)
    run_on_main(lambda: shutil.rmtree(saving, ignore_errors=True))
    net = trainer.accelerator.unwrap_model(trainer.model)
    net.config.get_text_config().use_cache = True
    trainer.save_model(str(saving))
    fault = run_on_main(lambda: describe_nonfinite(saving, trainer.state.global_step))
    if fault:
        run_on_main(lambda: shutil.rmtree(saving, ignore_errors=True))
        raise DivergedError(fault)
    trainer.save_state()
    if is_main():
        if model.lora_enable:
            net.config.save_pretrained(saving)  # an adapter's folder says by itself what model it makes
        if model.tune_mm_mlp_adapter and source.family.name == "llava":
            save_projector(saving, source)
        publish(folder)
        if not (model.lora_enable and model.freeze_mm_mlp_adapter):  # such an adapter stands on it
            shutil.rmtree(folder / BASE_MODEL, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def save_projector(folder: Path, source: Source) -> None:
    """Write LLaVA's `mm_projector.bin` beside the model saved in `folder`."""
    mark = "multi_modal_projector."
    held = {
        name.rpartition(mark)[2]: tensor
        for file in weight_files(folder)
        for name, tensor in read_shard(file)
        if mark in name
    }
    write_projector(held, projector_type_of(cast(LlavaConfig, source.config)), folder / PROJECTOR_FILE)


def last_task_losses(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return each task's last logged mean token loss."""
    mark = "task_loss/"
    return {key.removeprefix(mark): value for entry in history for key, value in entry.items() if key.startswith(mark)}


def _quiet(_: object) -> None:
    """Results that are too large to send to the other ranks."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise StoppedError


def set_up_logging() -> None:
    """Messages of rank 0 to stderr, and none of what nobody can act on."""
    level = logging.INFO if is_main() else logging.ERROR
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    for name in ("llava", "transformers_patch"):
        logging.getLogger(name).setLevel(level)
    # DeepSpeed calls torch by names that newer torch deprecates, once per tensor.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if not is_main():
        hf_logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
