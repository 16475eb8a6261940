"""LLaVA built of parts: its logits against an implementation by hand, its vocabulary, its errors."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaForCausalLM, LlamaTokenizer

from llava.model.assemble import build_llava, llava_config
from llava.model.family import family_of
from llava.model.projector import VisionFeatures
from llava.model.projector_file import write_projector
from tests.model.conftest import random_projector

IMAGE = 32000


def splice_logits(parts, projector, ids, images, layer=-2, keep_class=False):
    """The oracle: CLIP, the projector by hand, features put between the words' embeddings, a plain Llama.

    ``ids`` holds IMAGE once per image; returns float[S, 32000] over the spliced sequence.
    """
    llama, clip = LlamaForCausalLM.from_pretrained(parts[0]), CLIPVisionModel.from_pretrained(parts[1])
    linears = sorted({name.rsplit(".", 1)[0] for name in projector})
    pieces, images = [], list(images)
    for token in ids:
        if token != IMAGE:
            pieces.append(llama.model.embed_tokens.weight[token][None])
            continue
        hidden = clip(images.pop(0)[None], output_hidden_states=True).hidden_states[layer][0]
        hidden = hidden if keep_class else hidden[1:]
        for number, name in enumerate(linears):
            hidden = F.gelu(hidden) if number else hidden
            hidden = hidden @ projector[f"{name}.weight"].T + projector[f"{name}.bias"]
        pieces.append(hidden)
    return llama(inputs_embeds=torch.cat(pieces)[None]).logits[0]


def expanded(ids, count):
    return torch.tensor([[t for token in ids for t in [token] * (count if token == IMAGE else 1)]])


@pytest.mark.parametrize(
    ("kind", "layer", "feature"),
    [
        ("mlp2x_gelu", -2, "patch"),
        ("linear", -2, "cls_patch"),
        ("mlp1x_gelu", -1, "patch"),
        ("mlp3x_gelu", 1, "patch"),
    ],
)
@pytest.mark.parametrize("ids", [[1, 500, IMAGE, 13, 900], [1, IMAGE, 70, IMAGE, 80, 81], [1, 9, 10, 11]])
def test_logits_equal_embeddings_spliced_by_hand(parts, tmp_path, kind, layer, feature, ids):
    torch.manual_seed(0)
    weights = random_projector(kind, prefix="", dtype=torch.float32)
    torch.save({f"model.mm_projector.{name}": tensor for name, tensor in weights.items()}, tmp_path / "p.bin")
    model, processor = build_llava(*parts, VisionFeatures(kind, layer, feature), tmp_path / "p.bin")
    pixels = torch.randn(ids.count(IMAGE), 3, 28, 28)
    inputs = {"pixel_values": pixels} if len(pixels) else {}
    with torch.no_grad():
        ours = model(input_ids=expanded(ids, processor.num_image_tokens(1, 1)), **inputs).logits[0, :, :IMAGE]
        # a bare linear layer has no number: name it like the others for the oracle
        named = {f"0.{name}" if "." not in name else name: tensor for name, tensor in weights.items()}
        oracle = splice_logits(parts, named, ids, pixels, layer, feature == "cls_patch")
    assert ours.shape == oracle.shape
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)
    assert oracle.std() > 0.5  # the comparison is of something


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear", "mlp3x_gelu"])
def test_saved_model_loads_with_its_projector(parts, tmp_path, kind):
    model, processor = build_llava(*parts, VisionFeatures(kind))
    processor.default_template = "plain"
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    family = family_of(tmp_path / "m")
    again = family.load_model(tmp_path / "m")
    assert family.load_processor(tmp_path / "m").default_template == "plain"
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_identity_projector_needs_equal_widths(parts):
    with pytest.raises(ValueError, match=r"24 features .* takes 32"):
        llava_config(*parts, VisionFeatures("identity"))


def test_identity_projector(parts, tmp_path):
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig.from_pretrained(parts[1], hidden_size=32)
    CLIPVisionModel(config).save_pretrained(tmp_path)
    model, _ = build_llava(parts[0], tmp_path, VisionFeatures("identity"))
    features = torch.randn(2, 4, 32)
    assert torch.equal(model.model.multi_modal_projector(features), features)


def test_added_rows_are_zero_suppressed_and_counted(built, parts):
    model, processor = built
    family = family_of(model.config)
    assert model.lm_head.weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 32064
    assert family.real_vocab_size(model.config) == 32000
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [32000, 32001]
    llama = LlamaForCausalLM.from_pretrained(parts[0])
    assert torch.equal(model.lm_head.weight[:32000], llama.lm_head.weight)
    assert not model.lm_head.weight[32000:].any()
    assert model.generation_config.suppress_tokens == list(range(32000, 32064))


def test_generation_never_gives_an_added_row(hub_folder):
    model = family_of(hub_folder).load_model(hub_folder)
    with torch.no_grad():
        model.lm_head.weight[:32000] = 0  # every real token scores 0 …
        model.lm_head.weight[32000:] = model.model.language_model.norm.weight.sign() * 50
        model.lm_head.weight[32005:] *= -1  # … and one of these surely more
    out = model.generate(input_ids=torch.tensor([[1, 500, 600]]), max_new_tokens=3)
    assert (out < 32000).all()


def test_tied_language_model_stays_tied(parts, tmp_path):
    from transformers import LlamaConfig

    folder = tmp_path / "lm"
    LlamaForCausalLM(LlamaConfig.from_pretrained(parts[0], tie_word_embeddings=True)).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(parts[0] / name, folder)
    model, _ = build_llava(folder, parts[1])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "out")
    again = family_of(tmp_path / "out").load_model(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_misfits_are_named_before_weights_are_read(parts, tmp_path, monkeypatch):
    language, tower = parts
    monkeypatch.setattr("llava.model.assemble.AutoModelForCausalLM.from_pretrained", None)  # would not be callable
    wrong = tmp_path / "wrong.bin"
    write_projector({"linear_1.weight": torch.zeros(32, 20), "linear_1.bias": torch.zeros(32)}, "linear", wrong)
    with pytest.raises(ValueError, match=r"wrong\.bin: weight has shape \(32, 20\).*need \(32, 24\)"):
        build_llava(language, tower, VisionFeatures("linear"), wrong)
    with pytest.raises(ValueError, match=r"wrong\.bin: not a projector of type mlp2x_gelu"):
        build_llava(language, tower, projector_file=wrong)
    with pytest.raises(ValueError, match="no such projector file"):
        build_llava(language, tower, projector_file=tmp_path / "absent.bin")
    (tmp_path / "text.bin").write_text("not weights")
    with pytest.raises(ValueError, match="not a readable weight file"):
        build_llava(language, tower, projector_file=tmp_path / "text.bin")
    with pytest.raises(ValueError, match="vision tower must be one of clip"):
        build_llava(language, language)
    with pytest.raises(ValueError, match="language model must be one of llama"):
        build_llava(tower, tower)
    with pytest.raises(ValueError, match="unknown projector type 'mlp0x_gelu'"):
        build_llava(language, tower, VisionFeatures("mlp0x_gelu"))
    with pytest.raises(ValueError, match="outside its 3 layers"):
        build_llava(language, tower, VisionFeatures(layer=-5))
    with pytest.raises(ValueError, match="unknown vision feature"):
        build_llava(language, tower, VisionFeatures(feature="all"))


def test_a_model_without_images_is_named(parts):
    with pytest.raises(ValueError, match=r"vicuna: llama is none of transformers' image-text models"):
        family_of(parts[0])


def test_saved_folder_serves_stock_transformers(hub_folder):
    """What other engines do: Auto classes, no code of ours."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(hub_folder)
    model, report = AutoModelForImageTextToText.from_pretrained(hub_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    inputs = processor(images=image, text="USER: <image>\nhi ASSISTANT:", return_tensors="pt")
    own = family_of(hub_folder).load_processor(hub_folder)
    assert torch.equal(inputs["pixel_values"], own.pixel_inputs([image])["pixel_values"])
    assert int((inputs["input_ids"] == own.image_token_id).sum()) == own.num_image_tokens(20, 40)
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizer_splits_alike_after_saving(parts, tmp_path, legacy):
    """The reloaded tokenizer, too, and the one after that."""
    from llava.model.assemble import load_base_tokenizer
    from llava.model.families.llava import LlavaSquareProcessor, square_image_processor

    language = tmp_path / "lm"
    shutil.copytree(parts[0], language)
    settings = json.loads((language / "tokenizer_config.json").read_text())
    (language / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": legacy}))
    config = llava_config(language, parts[1])
    tokenizer = load_base_tokenizer(language, 32000)
    text = "USER: <image>\nWhat is 3 </s>USER: ok ASSISTANT: it</s>"
    wanted = tokenizer(text).input_ids
    processor = LlavaSquareProcessor(tokenizer, square_image_processor(28), config)
    for number in range(2):
        folder = tmp_path / str(number)
        processor.save_pretrained(folder)
        config.save_pretrained(folder)
        processor = family_of(folder).load_processor(folder)
        assert processor.tokenizer(text).input_ids == wanted
        assert LlamaTokenizer.from_pretrained(folder)(text).input_ids == wanted
    assert (folder / "tokenizer.model").read_bytes() == (parts[0] / "tokenizer.model").read_bytes()
