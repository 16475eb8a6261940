"""Make the tiny experiment's base model: a LLaVA that has learnt to look, but none of the tasks.

    python examples/tiny/make_base.py --output examples/tiny/base

1. A CLIP-type tower (width 64, 4 layers, patches of 8) learns to tell of each patch what lies there.
2. With the tower frozen, a Llama (width 96, 3 layers) and a projector learn alt-text of the same pictures, whose
   objects and attributes come in random order, so that no text prior can stand in for looking.

Cost and result: see docs/tiny.md. Legend: n pictures, P patches, D width, S tokens.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import tempfile
import time
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from llava.model.assemble import build_llava
from llava.model.families.llava import LlavaSquareProcessor

logger = logging.getLogger("make_base")

TEMPLATE = "mistral_instruct"  # the shortest one: no system text
FEATURE_LAYER = -2
WORLDS = {"tiny": "world", "nlvr": "nlvr_world"}


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token per word, number or punctuation mark of `texts`."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\.(?!\d)|[\[\],?]"), "isolated")]
    )
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(specials + words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in specials])
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace("[ ", "["),
            decoders.Replace(" ]", "]"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False, model_max_length=512,
    )  # fmt: skip


def pixels(images: list, size: int) -> torch.Tensor:
    """float32[n, 3, size, size], normalised as the processor does it."""
    from llava.model.families.llava import square_image_processor

    return square_image_processor(size)(images, return_tensors="pt")["pixel_values"]


def train_tower(world: ModuleType, steps: int, batch: int, seed: int) -> CLIPVisionModel:
    """A tower whose layer-(-2) features tell each patch's labels."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        image_size=world.PIXELS, patch_size=world.PATCH,
    )  # fmt: skip
    tower = CLIPVisionModel(config)
    sizes = list(world.LABELS.values())
    head = torch.nn.Linear(config.hidden_size, sum(sizes))
    learner = _Learner([*tower.parameters(), *head.parameters()], 3e-3, steps)
    rng = Random(f"tower {seed}")
    for step in range(steps):
        made = [world.picture(rng) for _ in range(batch)]
        truth = torch.from_numpy(np.stack([world.patch_labels(items) for items, _ in made]))
        outputs = tower(pixels([image for _, image in made], world.PIXELS), output_hidden_states=True)
        scores = head(outputs.hidden_states[FEATURE_LAYER][:, 1:])
        loss, right = _dense_loss(scores.split(sizes, -1), truth)
        learner.step(loss)
        if step % 100 == 99:
            logger.info("tower step %d loss %.3f right %s", step + 1, loss.item(), right)
    return tower.eval().requires_grad_(False)


def _dense_loss(scores: tuple[torch.Tensor, ...], truth: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    covered = truth[..., 0] > 0
    loss = F.cross_entropy(scores[0].flatten(0, 1), truth[..., 0].flatten())
    right = [(scores[0].argmax(-1) == truth[..., 0])[covered].float().mean().item()]
    for number, score in enumerate(scores[1:], start=1):
        wanted = truth[..., number][covered]
        loss = loss + F.cross_entropy(score[covered], wanted) / 2
        right.append((score[covered].argmax(-1) == wanted).float().mean().item())
    return loss, [round(value, 3) for value in right]


class _Learner:
    """AdamW with a short warm-up and a cosine to zero."""

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float, steps: int) -> None:
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps, pct_start=0.05)

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def train_language(
    model: LlavaForConditionalGeneration,
    processor: LlavaSquareProcessor,
    world: ModuleType,
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Alt-text after the picture, tower frozen."""
    rng = Random(f"language {seed}")
    tower = model.model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    learner = _Learner(parameters, 3e-3, steps)
    tokenizer = processor.tokenizer
    before, after = (tokenizer.convert_tokens_to_ids(words) for words in (["<s>", "[INST]"], ["[/INST]"]))
    model.train()
    smooth = None
    for step in range(steps):
        made = [world.picture(rng) for _ in range(batch)]
        with torch.no_grad():
            outputs = tower(pixels([image for _, image in made], world.PIXELS), output_hidden_states=True)
        image_part = model.model.multi_modal_projector(outputs.hidden_states[FEATURE_LAYER][:, 1:])
        text = [tokenizer(world.alt_text(items, rng) + "</s>", add_special_tokens=False).input_ids for items, _ in made]
        longest = max(map(len, text))
        ids = torch.tensor([after + row + [-100] * (longest - len(row)) for row in text])
        embed = model.get_input_embeddings()
        head = embed(torch.tensor([before] * batch))
        embedded = torch.cat([head, image_part, embed(ids.clamp(min=0))], 1)
        hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, -ids.shape[1] : -1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100)
        learner.step(loss)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 49:
            logger.info("language step %d loss %.3f cpu %.0f s", step + 1, smooth, time.process_time())
    model.eval()


def make(world: ModuleType, args: argparse.Namespace) -> None:
    """Train both parts and save the checkpoint in fp16."""
    texts = world.training_texts() + [_turns(record) for file in args.texts for record in json.loads(file.read_text())]
    tokenizer = make_tokenizer(texts)
    logger.info("%d words", len(tokenizer))
    with tempfile.TemporaryDirectory() as scratch:
        parts = Path(scratch)
        train_tower(world, args.tower_steps, args.batch, args.seed).save_pretrained(parts / "tower")
        logger.info("tower done: cpu %.0f s", time.process_time())
        torch.manual_seed(args.seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.05,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(parts / "language")
        tokenizer.save_pretrained(parts / "language")
        model, processor = build_llava(parts / "language", parts / "tower", template=TEMPLATE)
    train_language(model, processor, world, args.language_steps, args.batch, args.seed)
    publish(model, processor, args.output)
    logger.info("saved: cpu %.0f s", time.process_time())


def publish(model: LlavaForConditionalGeneration, processor: LlavaSquareProcessor, folder: Path) -> None:
    """Save in fp16, without the scratch folders that the parts came from."""
    for part in (model.config, model.config.text_config, model.config.vision_config):
        part._name_or_path = ""
    model.config.mm_vision_tower = None
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    processor.save_pretrained(folder)


def _turns(record: dict) -> str:
    return " ".join(turn["value"].removeprefix("<image>") for turn in record["conversations"])


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--world", choices=list(WORLDS), default="tiny")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="task files whose words it shall know, too")
    parser.add_argument("--tower_steps", type=int, default=600)
    parser.add_argument("--language_steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(importlib.import_module(WORLDS[args.world]), args)


if __name__ == "__main__":
    main()
