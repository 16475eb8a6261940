"""What a family without a file of its own cannot do is said by name, before a model is loaded or a step is done."""

import json
import shutil

import pytest
import torch

from llava.conversation import Piece
from llava.data.chat import ChatTemplate
from llava.data.collator import Collator
from llava.data.errors import BadSampleError
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, UsageError
from llava.train.source import find_source
from llava.train.startup import check_loss
from tests.families.checks import World
from tests.families.micro import micro_tokenizer
from tests.families.table import FAMILIES, chatml
from transformers_patch.forward import patch_forward


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return {name: World(name, tmp_path_factory.mktemp(name)) for name in ("qwen3_vl", "gemma3", "internvl")}


@pytest.fixture
def source(worlds, tmp_path):
    """`find_source` for a family's micro model."""
    data = tmp_path / "data.json"
    data.write_text("[]")

    def find(name, folder=None, packing=False, **model):
        return find_source(
            ModelArguments(str(folder or worlds[name].checkpoint), **model),
            DataArguments([str(data)], packing=packing),
            TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True),
        )

    return find


def test_packing(source):
    with pytest.raises(UsageError, match="--packing: samples of a gemma3 model cannot be packed: tokens of an image"):
        source("gemma3", packing=True)
    assert source("qwen3_vl", packing=True).family.name == "qwen3_vl"


def test_parts_are_found_or_named(source):
    found = source("internvl").family
    assert found.vision_modules == ("model.vision_tower",)
    named = source("internvl", projector_modules="model.multi_modal_projector.linear_1").family
    assert named.projector_modules == ("model.multi_modal_projector.linear_1",)
    assert named.language_modules == found.language_modules == ("model.language_model", "lm_head")
    with pytest.raises(UsageError, match=r"has no module model\.tower \(vision\); it has .*model\.vision_tower"):
        source("internvl", vision_modules="model.tower")


def test_a_template_of_llavas_is_not_put_on_another_model(source):
    with pytest.raises(UsageError, match="leave out --version"):
        source("internvl", version="v1")


def test_a_folder_without_chat_template(source, worlds, tmp_path):
    folder = shutil.copytree(worlds["internvl"].checkpoint, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template"):
        source("internvl", folder)


def test_experts_with_a_loss_of_their_own(source, worlds, tmp_path):
    folder = shutil.copytree(worlds["internvl"].checkpoint, tmp_path / "experts")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["output_router_logits"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="output_router_logits"):
        source("internvl", folder)


@pytest.mark.parametrize("packing", [False, True])
def test_another_loss_stops_the_training(worlds, packing):
    world = worlds["qwen3_vl"]
    net = world.model().float()
    patch_forward(net)
    collator = Collator(world.processor, 2048, packing)
    check_loss(net, "qwen3_vl", collator, world.samples)
    stock = net.loss_function
    net.loss_function = lambda *args, **kwargs: stock(*args, **kwargs) + 0.01  # as an auxiliary loss would add
    with pytest.raises(UsageError, match="qwen3_vl: the summed loss of two samples in one batch"):
        check_loss(net, "qwen3_vl", collator, world.samples)


def test_samples_that_see_each_other_stop_the_training(worlds, monkeypatch):
    """The check takes packed samples for what they are: with positions that run on, the second one sees the first."""
    world = worlds["qwen3_vl"]
    net = world.model().float()
    patch_forward(net)
    collator = Collator(world.processor, 2048, packing=True)
    monkeypatch.setattr(
        type(world.processor), "position_ids", lambda self, ids, grids=None: torch.arange(len(ids)).expand(4, -1) + 7
    )
    with pytest.raises(UsageError, match="two samples in one batch, packed"):
        check_loss(net, "qwen3_vl", collator, world.samples)


def chat(template, ends=()):
    tokenizer = micro_tokenizer(FAMILIES["qwen3_vl"])
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, "<|image_pad|>", "<|image_pad|>", ends)


TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": " so it is "}]
PLAIN = chatml("<|image_pad|>")


def test_answers_are_found_by_their_places():
    assert chat(PLAIN).pieces(TURNS) == [
        Piece("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", False),
        Piece(" so it is <|im_end|>", True),
        Piece("\n", False),
    ]
    trimmed = chat(PLAIN.replace("part['text']", "part['text'] | trim")).pieces(TURNS)
    assert trimmed[1] == Piece("so it is<|im_end|>", True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("part['text']", "part['text'] | replace('so', 'SO')"), "rewrites answers"),
        (("assistant\n{% endif %}", "robot\n{% endif %}"), "asks for the last answer in another way"),
    ],
)
def test_a_template_that_does_not_show_the_answers(change, said):
    with pytest.raises(BadSampleError, match=said):
        chat(PLAIN.replace(*change)).pieces(TURNS)


def test_a_template_that_ends_no_answer_takes_the_models_end_token():
    tokenizer = micro_tokenizer(FAMILIES["qwen3_vl"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pieces = chat(PLAIN.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}"), [end]).pieces(TURNS)
    assert pieces[-2:] == [Piece(" so it is ", True), Piece("<|im_end|>", True)]
