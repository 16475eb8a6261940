"""What is checked of every image-text family, on its micro model; each check returns how far off the result is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from llava.data.collator import Collator
from llava.data.dataset import InstructionDataset
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import Request
from llava.model.family import Family, Processor, family_of
from llava.model.load import load_model_and_processor
from llava.model.lora import lora_config
from llava.train.arguments import TrainingArguments
from llava.train.model import choose_trainable
from llava.train.train import ModelArguments
from llava.train.trainer import LlavaTrainer
from tests.data.world import index, record, save_image
from tests.families.micro import make_micro
from tests.families.table import FAMILIES
from transformers_patch.checkpoint import last_complete_checkpoint
from transformers_patch.forward import patch_forward

TASKS = ("vqa", "caption", "chat")
EXACT = 1e-12
"""Relative to the largest value, in float64."""
SIZES = {"a.png": (40, 60), "b.png": (200, 90), "c.png": (70, 310)}
RECORDS = [
    record("<image>\nWhat is this?", "a small red square", record_id="one", image="a.png"),
    record("What is 3 of 12?", "3", "And the answer?", "the image is shown.", record_id="text", task="chat"),
    record(
        "<image>\n<image>\nWhat is the answer?", "12", "Is it small?", "a red one", record_id="two",
        image=["b.png", "c.png"], task="caption",
    ),
    record("What is shown?\n<image>", "The question.", record_id="behind", image="c.png", task="caption"),
]  # fmt: skip


class AllDouble(TorchFunctionMode):
    """Does in float64 what a model's code does in float32 whatever its dtype is (norms, softmax, linear attention)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        return func(
            *args, **{name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        )


class Refused(Exception):  # noqa: N818  (a result, not an error)
    """What a family does not offer, by what it says itself."""


@dataclass
class World:
    """A family's micro model on disk, in `folder`, with a few records."""

    name: str
    folder: Path

    @cached_property
    def checkpoint(self) -> Path:
        folder = self.folder / "model"
        return folder if folder.is_dir() else make_micro(FAMILIES[self.name], folder)

    @cached_property
    def family(self) -> Family:
        return family_of(self.checkpoint)

    @cached_property
    def processor(self) -> Processor:
        return self.family.load_processor(self.checkpoint)

    @cached_property
    def samples(self) -> InstructionDataset:
        for number, (name, (height, width)) in enumerate(SIZES.items()):
            if not (self.folder / "images" / name).is_file():
                save_image(self.folder / "images" / name, height, width, number)
        path = index(self.folder, RECORDS, self.processor, image_folder=self.folder / "images", model_max_length=2048)
        return InstructionDataset(path, self.folder / "images", self.processor)

    @property
    def options(self) -> dict[str, Any]:
        """For loading in float64, which other implementations of experts do not know."""
        experts = {"experts_implementation": "eager"} if FAMILIES[self.name].experts else {}
        return {"dtype": torch.float64, **experts}

    def model(self) -> Any:
        """The model anew, in float64, with nothing at random in its forward."""
        return self.family.load_model(self.checkpoint, **self.options).eval()

    def images(self, content: dict[str, Any]) -> list[Image.Image]:
        names = content.get("image", [])
        return [
            Image.open(self.folder / "images" / n).convert("RGB")
            for n in ([names] if isinstance(names, str) else names)
        ]


def tokens(world: World) -> float:
    """Ids, pixels and answers against the family's own processor, called with the conversation and its images."""
    stock: Any = world.processor.stock  # type: ignore[attr-defined]
    for number, content in enumerate(RECORDS):
        ours = world.samples[number]
        images = world.images(content)
        text = stock.tokenizer.apply_chat_template(_conversation(content), tokenize=False)
        begun = text.startswith(stock.tokenizer.bos_token or "\n")  # then `apply_chat_template` adds no other
        theirs = stock(
            images=[images] if images else None, text=[text], add_special_tokens=not begun, return_tensors="pt"
        )
        ids = ours["input_ids"]
        own_end = len(theirs["input_ids"][0]) - len(ids)  # what we add, or leave out, where a template ends nothing
        assert own_end in (0, -1), (content["id"], own_end)
        assert ids[: len(ids) + own_end].tolist() == theirs["input_ids"][0].tolist(), content["id"]
        for name, value in theirs.items():
            if name not in ("input_ids", "attention_mask"):
                row = world.processor.row_inputs(ids[None]).get(name)
                assert torch.equal(row[:, : value.shape[1]] if row is not None else ours[name], value), name
        _check_answers(world, content, ours)
    return 0.0


def _conversation(content: dict[str, Any]) -> list[dict[str, Any]]:
    turns = []
    for turn in content["conversations"]:
        text = turn["value"].replace("<image>\n", "<image>").replace("\n<image>", "<image>")
        parts: list[dict[str, Any]] = []
        for number, stretch in enumerate(text.split("<image>")):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": stretch}] if stretch else []
        turns.append({"role": "user" if turn["from"] == "human" else "assistant", "content": parts})
    return turns


def _check_answers(world: World, content: dict[str, Any], sample: dict[str, Any]) -> None:
    """The targets are the answers, the last of them with the family's end token, and no image token is one."""
    tokenizer = world.processor.tokenizer
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    runs: list[list[int]] = []
    for place, label in enumerate(labels):
        if label >= 0:
            assert label == ids[place]
            if place == 0 or labels[place - 1] < 0:
                runs.append([])
            runs[-1].append(label)
    answers = [turn["value"] for turn in content["conversations"] if turn["from"] == "gpt"]
    assert len(runs) == len(answers)
    end = tokenizer.convert_tokens_to_ids(FAMILIES[world.name].target_end)
    for run, answer in zip(runs, answers, strict=True):
        assert (
            tokenizer.decode(run, skip_special_tokens=True).replace(FAMILIES[world.name].thought, "").strip() == answer
        )
    assert runs[-1][-1] == end
    assert not set(world.processor.unwritten_ids) & {label for run in runs for label in run}


def _patched(world: World, model: Any, packing: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    batch = Collator(world.processor, 2048, packing)([world.samples[n] for n in range(len(RECORDS))])
    model.zero_grad()
    patch_forward(model, "select")
    total = model(**_double(batch)).token_losses.sum()
    total.backward()
    return float(total), _gradients(model)


def _stock(world: World, model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Σ cross-entropy of the stock logits of each sample by itself, and its gradients."""
    total, alone = 0.0, Collator(world.processor, 2048)
    for number in range(len(RECORDS)):
        batch = _double(alone([world.samples[number]]))
        batch.pop("vitw_task_ids")
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        loss.backward()
        total += loss.item()
    return total, _gradients(model)


def _double(batch: dict[str, Any]) -> dict[str, Any]:
    return {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in batch.items()}


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def _off(ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> float:
    """The largest difference of loss and gradients, relative to the largest value of each."""
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    off = max(float((ours[1][name] - theirs[1][name]).abs().max()) for name in theirs[1]) / scale
    return max(off, abs(ours[0] - theirs[0]) / abs(theirs[0]))


def loss(world: World) -> float:
    """Loss and gradients of a padded batch against the stock logits of each sample alone."""
    expected = _stock(world, world.model())
    assert any("vis" in name for name in expected[1])
    return _off(_patched(world, world.model()), expected)


def packing(world: World) -> float:
    """The same of samples packed into one row."""
    if reason := world.family.why_not_packed(world.processor):
        raise Refused(reason)
    return _off(_patched(world, world.model(), packing=True), _stock(world, world.model()))


def train(world: World, folder: Path, resume: bool = False, **options: Any) -> dict[str, torch.Tensor]:
    """The parameters after two steps of four samples."""
    model = world.model()
    choose_trainable(model, world.family, ModelArguments(str(world.checkpoint), unfreeze_mm_vision_tower=True))
    values = {
        "output_dir": str(folder), "max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant", "use_cpu": True,
    }  # fmt: skip
    # At its own 1e-8 Adam makes much of gradients that are rounding alone.
    arguments = TrainingArguments(**{**values, "adam_epsilon": 1e-3, **options})
    trainer = LlavaTrainer(
        model,
        arguments,
        family=world.family,
        task_names=list(TASKS),
        weighter=dict(zip(TASKS, (0.5, 1.0, 1.5), strict=True)),
        load_model=lambda path: world.family.load_model(path, **world.options),
        train_dataset=world.samples,
        data_collator=lambda samples: _double(Collator(world.processor, 2048)(samples)),
        processing_class=world.processor,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder) if resume else None)
    net = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' parameters."""
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def accumulation(world: World) -> float:
    """Parameters after two steps: four micro-batches of one sample (one of them text) against one of four."""
    whole = train(world, world.folder / "whole")
    parts = train(world, world.folder / "parts", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    return apart(parts, whole)


def resume(world: World) -> float:
    """Parameters after two steps, saved and loaded after the first, against two steps in one go."""
    straight = train(world, world.folder / "straight")
    folder = world.folder / "halves"
    train(world, folder, max_steps=1, save_strategy="steps", save_steps=1)
    return apart(train(world, folder, resume=True, save_strategy="steps", save_steps=1), straight)


def lora(world: World) -> float:
    """Logits of an adapter that was trained, saved and loaded onto its base, against those before it was saved."""
    model = world.model()
    adapted: Any = get_peft_model(model, lora_config(model, world.family, r=2, alpha=4), autocast_adapter_dtype=False)
    batch = _double(Collator(world.processor, 2048)([world.samples[0]]))
    patch_forward(adapted, "select")
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        adapted(**batch).token_losses.sum().backward()
        optimizer.step()
    moved = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("lora_B" in name for name in moved)
    assert any("modules_to_save" in name for name in moved)
    folder = world.folder / "adapter"
    adapted.peft_config["default"].base_model_name_or_path = str(world.checkpoint)
    adapted.save_pretrained(folder)
    model.config.save_pretrained(folder)
    world.processor.save_pretrained(folder)
    again, _ = load_model_and_processor(folder, **world.options)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "vitw_task_ids")}
    with torch.no_grad():
        ours, theirs = again(**inputs).logits, adapted.eval()(**inputs).logits
    return float((ours - theirs).abs().max() / theirs.abs().max())


def answers(world: World) -> float:
    """Answers of all requests in one batch against one by one, and after the processor was saved and loaded."""
    model = world.model()
    world.processor.save_pretrained(world.folder / "saved")
    (world.folder / "saved" / "config.json").write_bytes((world.checkpoint / "config.json").read_bytes())
    again = world.family.load_processor(world.folder / "saved")
    requests = [Request(content["id"], content["conversations"][:1], world.images(content)) for content in RECORDS]
    found = [
        dict(Generator(model, processor, settings=GenerationSettings(8, batch_size=size)).generate(requests))
        for processor, size in ((world.processor, 1), (again, 4))
    ]
    assert found[0] == found[1], found
    assert len(set(found[0].values())) > 1, found
    return 0.0


CHECKS: dict[str, Callable[[World], float]] = {
    check.__name__: check for check in (tokens, loss, packing, accumulation, resume, lora, answers)
}


def outcome(check: str, world: World) -> str:
    """`exact`, or what the family says it does not offer. Raises AssertionError where it is neither."""
    assert world.samples  # made as they are for anyone
    try:
        with AllDouble():
            off = CHECKS[check](world)
    except Refused as refused:
        return str(refused)
    assert off < EXACT, f"{check} of {world.name} is off by {off}"
    return "exact"
