"""Memory and time before anything is rented: against operations and saved tensors counted on the meta device."""

import json
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.workflow.world import write_experiment
from visatb.commands.plan import main
from visatb.experiment.read import load_experiment
from visatb.experiment.shapes import shape_from_config, shape_of
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workflow import fit as fit_module
from visatb.workflow.checks import validate
from visatb.workflow.estimate import make_plan
from visatb.workflow.fit import CARDS, GIB, Setup, found_card, memory_of, train_flops

EXAMPLES = Path(__file__).parents[2] / "examples"
SEVEN, THIRTEEN = "liuhaotian/llava-v1.5-7b", "liuhaotian/llava-v1.5-13b"
QWEN_2B, QWEN_7B = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"
MODELS = [SEVEN, THIRTEEN, QWEN_2B, QWEN_7B]


def decoder_on_meta(model, layers):
    """transformers' own language model of this shape, with so many layers and without storage."""
    shape = shape_of(model).decoder
    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "use_cache": False,
    }
    kinds = (Qwen2Config, Qwen2ForCausalLM) if "Qwen" in model else (LlamaConfig, LlamaForCausalLM)
    with torch.device("meta"):
        return kinds[1](kinds[0](**sizes)).to(torch.bfloat16)


@pytest.mark.parametrize(("model", "billions"), [(SEVEN, 7.06), (THIRTEEN, 13.35), (QWEN_2B, 2.21), (QWEN_7B, 8.29)])
def test_parameters_are_those_of_the_published_models(model, billions):
    assert shape_of(model).parameters / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_operations_are_those_that_are_counted(model):
    layers, tokens = 2, 844
    whole = shape_of(model).decoder
    few = type(whole)(**{**vars(whole), "layers": layers})
    net = decoder_on_meta(model, layers)
    hidden = torch.empty(1, tokens, whole.hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
    positions = net.model.rotary_emb(hidden, torch.arange(tokens, device="meta")[None])
    with FlopCounterMode(display=False) as forward:  # layer by layer: the whole model looks at its input's values
        states = hidden
        for layer in net.model.layers:
            states = layer(states, position_embeddings=positions, attention_mask=None)
        logits = net.lm_head(states)
    assert few.forward_flops(tokens, tokens) == pytest.approx(forward.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    shape = type(shape_of(model))(few, type(shape_of(model).tower)(0, 0, 0, 0, 0), 0)
    setup = Setup(1, 1, 0, False, True, 0, tokens)
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert train_flops(shape, setup, tokens, tokens) == pytest.approx(counted, rel=0.02)


class Kept(torch.autograd.Function):
    """Keeps what flash attention keeps for its backward."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad, grad, grad


@pytest.mark.parametrize("model", MODELS)
def test_what_a_layer_keeps_is_what_autograd_saves(model):
    def attention(module, query, key, value, mask, **_):
        return Kept.apply(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("kept", attention)
    net = decoder_on_meta(model, 1)
    net.set_attn_implementation("kept")
    tokens, layer = 64, net.model.layers[0]
    weights = {StorageWeakRef(weight.untyped_storage()) for weight in layer.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in weights and tensor.numel() > tokens * 256:  # what grows with the widths
            saved[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    hidden = torch.empty(1, tokens, net.config.hidden_size, dtype=torch.bfloat16, device="meta", requires_grad=True)
    positions = net.model.rotary_emb(hidden, torch.arange(tokens, device="meta")[None])
    kept = []
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor), pack(tensor))[1], lambda tensor: tensor):
        layer(hidden, position_embeddings=positions, attention_mask=None)
    assert shape_of(model).decoder.kept_in_layer * 2 * tokens == pytest.approx(sum(saved.values()), rel=0.03)


@pytest.mark.parametrize(
    ("model", "stage", "rank", "gib"),
    [(SEVEN, 3, 0, 34), (SEVEN, 2, 0, 43), (THIRTEEN, 3, 0, 52), (QWEN_7B, 3, 0, 36), (SEVEN, 3, 128, 25)],
)
def test_memory_of_a_node(model, stage, rank, gib):
    """Eight GPUs, micro-batches of 16 × 2,048; figures of an audit that counted saved tensors over whole models."""
    memory = memory_of(shape_of(model), Setup(8, 16, stage, True, True, rank, 2048))
    assert memory.total / GIB == pytest.approx(gib, rel=0.12)


def test_sums_by_hand():
    """A model of round numbers: h 100, i 200, 10 layers, 10 heads of 10, V 1,000, on two GPUs under ZeRO-2."""
    text = {
        "hidden_size": 100,
        "intermediate_size": 200,
        "num_hidden_layers": 10,
        "num_attention_heads": 10,
        "vocab_size": 1000,
    }
    vision = {"hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 1, "image_size": 20, "patch_size": 10}
    shape = shape_from_config({"text_config": text, "vision_config": vision})
    layer = 4 * 100 * 100 + 3 * 100 * 200
    assert shape.decoder.layer_weights == layer == 100_000
    language = 10 * (layer + 200) + 2 * 100_000 + 100
    assert shape.learning == language + (10 + 100) * 100
    assert shape.parameters == shape.learning + 4 * 10 * 10 + 2 * 10 * 20
    memory = memory_of(shape, Setup(2, 3, 2, True, True, 0, 50))
    assert memory.weights == shape.parameters * 2
    assert memory.gradients == shape.learning * 2 / 2
    assert memory.optimizer == shape.learning * 12 / 2
    kept = (8 * 100 + 4 * 100 + 4 * 200) * 2
    assert memory.activations == 150 * (10 * 100 * 2 + kept + 2 * 200 * 2)
    assert memory.logits == 150 * 1000 * 12
    alone = memory_of(shape, Setup(1, 3, 0, False, False, 0, 50))
    assert (alone.weights, alone.gradients) == (shape.parameters * 4, shape.learning * 4)
    assert alone.optimizer == shape.learning * 8
    assert alone.activations == 2 * 150 * 10 * kept
    two = memory_of(shape, Setup(2, 3, 0, False, True, 0, 50))  # DDP's buckets, autocast's copies
    assert (two.weights, two.gradients) == (shape.parameters * 4 + shape.learning * 2, shape.learning * 8)
    quantised = memory_of(shape, Setup(1, 3, 0, True, True, 8, 50, bits=4))
    assert quantised.weights == language / 2 + (shape.parameters - language) * 2
    adapters = 8 * 10 * (4 * 200 + 3 * 300)
    assert quantised.gradients == (adapters + 110 * 100) * 4
    alone = memory_of(shape, Setup(1, 3, 0, True, True, 0, 50, projector_only=True))
    assert (alone.weights, alone.optimizer) == (shape.parameters * 2, 110 * 100 * 8)


@pytest.mark.parametrize("name", ["academic", "m3it", "chat", "qwen2vl"])
@pytest.mark.parametrize("card", ["a100-40", "a100-80", "h100-80"])
def test_plans_of_the_paper_on_three_cards(name, card):
    plan = make_plan(load_experiment(EXAMPLES / f"{name}.yaml"), card=CARDS[card])
    assert all(fit.fits for fit in plan.fits)
    final = next(model for model in plan.models if model.name == "EW")
    assert final.train_seconds > 600


def test_time_of_the_published_run():
    """LLaVA-v1.5 reports about 10 hours for 665k samples on 8 A100; 474k of them are 7.1."""
    plan = make_plan(load_experiment(EXAMPLES / "academic.yaml"), card=CARDS["a100-80"])
    final = next(model for model in plan.models if model.name == "EW")
    assert 5 < final.train_seconds / 3600 < 8


def test_what_does_not_fit_is_told_with_what_would(tmp_path, capsys):
    path = write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": SEVEN, "parameters": "7B"})
    assert main([str(path), "--gpu", "a100-40", "--json"]) == 0
    [first, *_] = json.loads(capsys.readouterr().out)["fits"]
    assert not first["fits"]
    assert first["remedy"] == "lora_enable: true, bf16: true, gradient_checkpointing: true"
    assert main([str(path), "--gpu", "a100-40"]) == 0
    assert "do not fit: what would: lora_enable: true" in " ".join(capsys.readouterr().out.split())


def test_a_model_of_unknown_shape_is_an_error(tmp_path, capsys):
    path = write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": "some/where", "parameters": "7B"})
    assert main([str(path), "--gpu", "a100-40"]) == 2
    assert "model.path: some/where is not on this machine" in capsys.readouterr().err


def test_no_number_is_cut_off_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([str(EXAMPLES / "academic.yaml"), "--gpu", "h100-80"]) == 0
    table = capsys.readouterr().out.split("Memory of one GPU")[0]
    assert "3,814,972" in table
    assert "2,244,300" in table
    assert max(map(len, table.splitlines())) <= 80
    assert not any("…" in line[20:] for line in table.splitlines())


@pytest.mark.parametrize(
    ("line", "card"),
    [
        ("NVIDIA A100-SXM4-80GB, 81920", "a100-80"),
        ("NVIDIA A100-PCIE-40GB, 40960", "a100-40"),
        ("NVIDIA H100 80GB HBM3, 81559", "h100-80"),
        ("NVIDIA H200, 143771", "h200-141"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx4090-24"),
        ("NVIDIA RTX A6000, 49140", "a6000-48"),
        ("NVIDIA Unheard Of, 1000", None),
        ("", None),
    ],
)
def test_the_card_of_this_machine(line, card, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{line}\\n{line}\\n'\n" if line else "#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = found_card()
    if card is None:
        assert found is None
    else:
        assert (found[0].name, found[1]) == (CARDS[card].name, 2)
    assert fit_module.shutil.which("nvidia-smi")


def trained(work, model, seconds):
    """A training of 40 samples that the work folder has done."""
    (work / "models" / model).mkdir(parents=True)
    (work / "models" / model / "run_card.json").write_text(json.dumps({"steps": 5, "global_batch_size": 8}))
    steps = Layout(work).steps(model)
    steps.parent.mkdir(parents=True, exist_ok=True)
    steps.write_text(json.dumps({"train": {"key": "k", "done": True, "seconds": seconds}}))


def test_measured_trainings_take_the_place_of_reckoning(tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, global_batch_size=8))
    trained(tmp_path / "work", "mini", 20.0)
    plan = make_plan(experiment, tmp_path / "work")
    for model in plan.models:
        assert model.train_seconds == pytest.approx(model.steps * 8 * 20.0 / 40)
    assert any("0.5 s a sample" in note for note in plan.notes)


def test_proxies_that_train_otherwise_tell_nothing_of_final_runs(tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, global_batch_size=8, proxies="lora"))
    trained(tmp_path / "work", "mini", 20.0)
    seconds = {model.name: model.train_seconds for model in make_plan(experiment, tmp_path / "work").models}
    assert seconds["plus_mini:a"] > 0
    assert seconds["EW"] is None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optim": "adafactor"}, "optim: adafactor"),
        ({"optim": "adamw_bnb_8bit"}, "optim: adamw_bnb_8bit"),
        ({"unfreeze_mm_vision_tower": True}, "a freed vision tower"),
        ({"deepspeed": "zero.json"}, "offloading"),
    ],
)
def test_what_is_not_reckoned_with_is_said_and_not_refused(tmp_path, monkeypatch, training, said):
    content = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "zero.json").write_text(json.dumps(content))
    model = {"path": SEVEN, "parameters": "7B"}
    path = write_experiment(tmp_path, {"a": {}, "b": {}}, model=model, training=training)
    plan = make_plan(load_experiment(path), card=CARDS["rtx4090-24"])
    assert not any(fit.fits for fit in plan.fits)
    assert f"memory is reckoned without {said}" in plan.notes
    monkeypatch.setattr("visatb.workflow.checks.found_card", lambda: (CARDS["rtx4090-24"], 1))
    with pytest.raises(ExperimentError) as caught:  # for the model, which is not there
        validate(load_experiment(path), Layout(tmp_path / "work"))
    assert "do not fit" not in str(caught.value)


def test_validate_refuses_what_does_not_fit_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("visatb.workflow.checks.found_card", lambda: (CARDS["a100-40"], 1))
    monkeypatch.setattr("visatb.workflow.checks.shape_of", lambda _: shape_of(SEVEN))
    path = write_experiment(tmp_path, {"a": {}, "b": {}})
    with pytest.raises(ExperimentError, match=r"finals do not fit .* A100 40 GB: .* what would: lora_enable"):
        validate(load_experiment(path), Layout(tmp_path / "work"))
