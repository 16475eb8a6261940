"""The patched forward against stock transformers and against itself."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from tests.vitw.workbench import IMAGE_TOKEN, IMAGE_TOKENS, tiny_model
from transformers_patch import forward as forward_module
from transformers_patch.forward import patch_forward
from transformers_patch.loss import target_tasks, task_loss_sums, token_counts

TEXT = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def qwen(cls, config_cls):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 4}
    if config_cls is Qwen2_5_VLConfig:
        vision |= {"out_hidden_size": 16, "intermediate_size": 32, "window_size": 16, "fullatt_block_indexes": [0]}
    text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, "max_position_embeddings": 64}
    config = config_cls(text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN)
    return cls(config)


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TEXT)),
    "llava": lambda: tiny_model(torch.float32),
    "qwen2_vl": lambda: qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig),
    "qwen2_5_vl": lambda: qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
}


def batch(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, IMAGE_TOKEN, (3, 14), generator=generator)
    labels = ids.clone()
    labels[0, :9], labels[1, :6], labels[1, 8:10], labels[2] = -100, -100, -100, -100
    attention = torch.ones_like(ids)
    attention[2, 10:] = 0
    inputs = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    if name != "llama":
        ids[0, 1 : 1 + IMAGE_TOKENS] = IMAGE_TOKEN
    if name == "llava":
        inputs["pixel_values"] = torch.randn(1, 3, 8, 8, generator=generator)
    elif name != "llama":
        inputs["pixel_values"] = torch.randn(16, 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    return inputs


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("impl", ["select", "chunked", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_unit_weights_equal_stock_transformers(name, impl, monkeypatch):
    monkeypatch.setattr(forward_module, "CHUNK_LOGITS", 64 * 3)  # three tokens per chunk
    model, inputs = build(name), batch(name)
    stock = model(**inputs)
    expected = gradients(model, stock.loss)
    stock_logits = stock.logits.detach()
    patch_forward(model, impl)
    losses = model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long)).token_losses
    shifted = F.cross_entropy(stock_logits[:, :-1].transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
    torch.testing.assert_close(losses, shifted[inputs["labels"][:, 1:] != -100], atol=1e-6, rtol=1e-6)
    assert losses.mean().item() == pytest.approx(stock.loss.item(), abs=1e-6)
    actual = gradients(model, losses.mean())
    assert actual.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], atol=1e-6, rtol=1e-4, msg=key)


def test_select_gives_logits_of_valid_targets_only_and_full_logits_otherwise():
    model, inputs = build("llava"), batch("llava")
    sizes = []
    model.lm_head.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape)))
    patch_forward(model, "select")
    model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long))
    inputs.pop("labels")
    assert model(**inputs).logits.shape == (3, 14, 64)
    assert sizes == [(5 + 6, 64), (3, 14, 64)]


def test_auto_chunks_only_what_is_large(monkeypatch):
    model, inputs = build("llama"), batch("llama")
    patch_forward(model, "auto")
    tasks = torch.zeros(3, dtype=torch.long)
    shapes = []
    model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.dim()))
    small = model(**inputs, vitw_task_ids=tasks).token_losses
    monkeypatch.setattr(forward_module, "SELECT_LOGITS", 64 * 10)
    large = model(**inputs, vitw_task_ids=tasks).token_losses
    assert shapes == [2, 1]
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("impl", ["select", "chunked", "full"])
def test_a_batch_without_valid_targets_has_zero_gradients(impl):
    model, inputs = build("llava"), batch("llava")
    inputs["labels"][:] = -100
    patch_forward(model, impl)
    losses = model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long)).token_losses
    assert losses.shape == (0,)
    grads = gradients(model, losses.sum())
    assert "model.multi_modal_projector.linear_1.weight" in grads
    assert not any(g.any() for g in grads.values())


@pytest.mark.parametrize("impl", ["select", "chunked", "full"])
def test_padding_rows_of_the_head_stay_out_of_the_softmax(impl):
    model, inputs = build("llama"), batch("llama")
    inputs["labels"][inputs["labels"] >= 50] = -100
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits[:, :-1, :50]
    shifted = F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
    patch_forward(model, impl, vocab_size=50)
    losses = model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long)).token_losses
    torch.testing.assert_close(losses, shifted[inputs["labels"][:, 1:] != -100])
    head = gradients(model, losses.sum())["lm_head.weight"]
    assert head[:50].any()
    assert not head[50:].any()


def test_patching_twice_is_patching_once():
    model, inputs = build("llama"), batch("llama")
    expected = model(**inputs).loss
    patch_forward(model, "select")
    patch_forward(model, "chunked")
    losses = model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long)).token_losses
    torch.testing.assert_close(losses.mean(), expected)
    torch.testing.assert_close(model(**inputs).loss, expected)


def test_a_model_that_changes_its_logits_is_refused_when_chunked():
    model, inputs = build("llama"), batch("llama")
    stock = model.forward

    def capped(*args, **kwargs):
        output = stock(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    model.forward = capped
    patch_forward(model, "chunked")
    with pytest.raises(ValueError, match="loss_impl select"):
        model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long))


def tiny_gemma2():
    torch.manual_seed(0)
    options = {**TEXT, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.1}
    return Gemma2ForCausalLM(Gemma2Config(**options)).eval()


@pytest.mark.parametrize("empty_first", [False, True], ids=["large first", "no target first"])
def test_auto_selects_where_a_model_caps_its_logits(empty_first, monkeypatch):
    monkeypatch.setattr(forward_module, "SELECT_LOGITS", 64 * 10)  # the batch has 11 targets
    model, inputs, tasks = tiny_gemma2(), batch("llama"), torch.zeros(3, dtype=torch.long)
    expected = model(**inputs).loss
    patch_forward(model, "auto")
    if empty_first:
        empty = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
        assert model(**empty, vitw_task_ids=tasks).token_losses.shape == (0,)
    calls = []
    model.lm_head.register_forward_hook(lambda _, __, output: calls.append(tuple(output.shape)))
    for _ in range(2):
        torch.testing.assert_close(model(**inputs, vitw_task_ids=tasks).token_losses.mean(), expected)
    selected = (11, 64)
    assert calls == ([] if empty_first else [(11,)]) + [selected] * 2  # one forward is done again, once


@pytest.mark.parametrize("impl", ["select", "chunked", "auto", "full"])
def test_a_nan_loss_is_a_nan_loss(impl, monkeypatch):
    monkeypatch.setattr(forward_module, "SELECT_LOGITS", 64 * 10)
    model, inputs = build("llama"), batch("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    patch_forward(model, impl)
    losses = model(**inputs, vitw_task_ids=torch.zeros(3, dtype=torch.long)).token_losses
    assert losses.shape == (11,)
    assert losses.isnan().all()


@pytest.mark.parametrize("name", MODELS)
def test_generation_and_signature_are_stock(name):
    """Llama finds positions of left-padded rows only where `forward` names `attention_mask`."""
    model, inputs = build(name), batch(name)
    inputs.pop("labels")
    inputs["input_ids"][1:, :4] = 0
    if name == "llama":
        inputs.pop("attention_mask")  # found from the padding
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(**inputs, **options)
    signature = inspect.signature(model.forward)
    patch_forward(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model.generate(**inputs, **options), expected)


def refused(name: str, **config) -> torch.nn.Module:
    module = import_module("transformers")
    return getattr(module, name)(getattr(module, config.pop("config"))(**config))


SMALL = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BERT = {**TEXT, "num_hidden_layers": 1}
PROPHET = {"vocab_size": 64, "hidden_size": 16, "num_decoder_layers": 1, "num_decoder_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("BartForConditionalGeneration", {"config": "BartConfig", **SMALL}, "is an encoder-decoder"),
        (
            "T5ForConditionalGeneration",
            {"config": "T5Config", "vocab_size": 64, "d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2},
            "is an encoder-decoder",
        ),
        ("ProphetNetForCausalLM", {"config": "ProphetNetConfig", **PROPHET}, "predicts several tokens ahead"),
        ("GitForCausalLM", {"config": "GitConfig", **BERT}, "its logits stand at other positions"),
        ("BertLMHeadModel", {"config": "BertConfig", **BERT}, "a position sees its target"),
        (
            "XLNetLMHeadModel",
            {"config": "XLNetConfig", "vocab_size": 64, "d_model": 16, "n_layer": 1, "n_head": 2},
            "its",
        ),
    ],
)
def test_what_is_no_decoder_of_its_own_input_is_refused_by_name(name, config, message):
    model = refused(name, **config)
    with pytest.raises(ValueError, match=message) as caught:
        patch_forward(model)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ChameleonForConditionalGeneration", {"config": "ChameleonConfig", "vocabulary_map": {"<image>": 1}}),
        ("Florence2ForConditionalGeneration", {"config": "Florence2Config"}),
    ],
)
def test_large_multimodal_models_are_refused_by_name(name, config):
    with torch.device("meta"):
        model = refused(name, **config)
    with pytest.raises(ValueError, match=rf"{name}.* (encoder-decoder|no weighted loss)"):
        patch_forward(model)


def test_the_loss_of_experts_is_refused_before_training_and_in_it():
    torch.manual_seed(0)
    options = {**TEXT, "num_key_value_heads": 1, "num_local_experts": 2}
    model, inputs = MixtralForCausalLM(MixtralConfig(**options)).eval(), batch("llama")
    stock = model(**inputs).loss
    patch_forward(model)
    tasks = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(model(**inputs, vitw_task_ids=tasks).token_losses.mean(), stock)
    with pytest.raises(ValueError, match="balance of its experts"):
        model(**inputs, vitw_task_ids=tasks, output_router_logits=True)
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match=r"MixtralForCausalLM .*set output_router_logits to False"):
        patch_forward(model)


def test_tasks_of_targets_counts_and_sums():
    labels = torch.tensor([[-100, 5, 6, -100], [7, 8, -100, 9]])
    assert target_tasks(labels, torch.tensor([2, 0])).tolist() == [2, 2, 0, 0]
    packed = torch.tensor([[0, 0, 1, 1], [2, 2, 1, 1]])
    assert target_tasks(labels, packed).tolist() == [0, 1, 2, 1]
    assert token_counts(labels, packed, 4).tolist() == [1, 2, 1, 0]
    sums = task_loss_sums(torch.tensor([1.0, 2.0, 3.0, 4.0]), target_tasks(labels, packed), 4)
    assert sums.tolist() == [1.0, 6.0, 3.0, 0.0]
