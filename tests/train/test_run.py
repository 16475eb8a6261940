"""Whole runs in this process: both stages, LoRA, stop and go on, what is refused before a model is loaded."""

import importlib.util
import json
import logging
import os
import re
import shutil
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.model.load import load_model_and_processor
from llava.progress import VARIABLE
from llava.train import model as model_source
from llava.train.folder import read_json
from llava.train.train import main
from llava.train.trainer import LlavaTrainer
from tests.train.workbench import ACADEMIC


@pytest.fixture
def train(bench, tmp_path):
    """Run main(); flags that are given replace the defaults."""

    def train(output="out", **flags) -> int:
        values = {
            "model_name_or_path": bench.root / "llava",
            "data_path": bench.data(ACADEMIC),
            "image_folder": bench.images,
            "output_dir": tmp_path / output,
            "index_cache_dir": bench.root / "index",
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "preprocess_workers": 1,
            **flags,
        }
        words = [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]
        handler = signal.getsignal(signal.SIGTERM)
        try:
            return main(words)
        finally:
            signal.signal(signal.SIGTERM, handler)

    return train


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed_parts(before, after):
    """Which top-level parts of two saved models differ."""
    return {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}


def test_both_stages(train, bench, tmp_path):
    parts = {"model_name_or_path": bench.root / "lm", "vision_tower": bench.root / "clip"}
    captions = {"data_path": bench.data(None, text_only=False), "version": "plain", "tune_mm_mlp_adapter": True}
    assert train("pretrained", **parts, **captions) == 0
    projector = torch.load(tmp_path / "pretrained" / "mm_projector.bin", weights_only=True)
    assert sorted(projector) == [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    first = weights(tmp_path / "pretrained")
    assert torch.equal(projector["model.mm_projector.2.bias"], first["multi_modal_projector.linear_2.bias"])

    second = {"pretrain_mm_mlp_adapter": tmp_path / "pretrained" / "mm_projector.bin", "version": "v1"}
    assert train("tuned", **parts, **second, learning_rate=1e-8) == 0  # so small that the start still shows
    tuned = weights(tmp_path / "tuned")
    assert changed_parts(first, tuned) <= {"multi_modal_projector", "language_model"}
    for name in first:
        if name.startswith("multi_modal_projector"):
            torch.testing.assert_close(first[name], tuned[name], atol=1e-6, rtol=0)
    card = read_json(tmp_path / "tuned" / "run_card.json")
    assert card["arguments"]["learning_rate"] == 1e-8
    assert card["data"][0]["bytes"] == os.path.getsize(bench.data(ACADEMIC))
    assert len(card["data"][0]["sha256"]) == 64
    assert set(card["task_loss"]) <= set(ACADEMIC)
    assert card["versions"]["torch"] == torch.__version__
    _, processor = load_model_and_processor(tmp_path / "pretrained")
    assert processor.default_template == "plain"


@pytest.mark.parametrize(
    ("flags", "learning"),
    [
        ({}, {"language_model", "multi_modal_projector"}),
        ({"freeze_backbone": True}, {"multi_modal_projector"}),
        ({"freeze_mm_mlp_adapter": True}, {"language_model"}),
        ({"unfreeze_mm_vision_tower": True}, {"language_model", "multi_modal_projector", "vision_tower"}),
        ({"mm_projector_lr": 0.0}, {"language_model"}),
    ],
)
def test_what_learns(train, bench, tmp_path, flags, learning):
    assert train(**flags, group_by_modality_length=True) == 0
    assert changed_parts(weights(bench.root / "llava"), weights(tmp_path / "out")) == learning


@pytest.fixture
def large_images(bench, tmp_path):
    """Qwen2-VL with the published limit of pixels, and a record with a scanned page, which alone takes 2,772 tokens."""
    model = shutil.copytree(bench.root / "qwen", tmp_path / "qwen")
    settings = read_json(model / "preprocessor_config.json")
    settings["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    records = read_json(bench.data(ACADEMIC))
    Image.new("RGB", (1240, 1754)).save(bench.images / "page.png")
    records[0]["image"] = "page.png"
    (tmp_path / "pages.json").write_text(json.dumps(records))
    return {"model_name_or_path": model, "data_path": tmp_path / "pages.json", "model_max_length": 256, "max_steps": 1}


def test_an_image_that_does_not_fit_is_scaled_and_the_limit_kept_with_the_model(train, large_images, tmp_path):
    assert train(**large_images) == 0
    assert read_json(tmp_path / "out" / "run_card.json")["index"]["skipped"] == {}
    _, processor = load_model_and_processor(tmp_path / "out")
    assert processor.image_processor.size["longest_edge"] == 160 * 28 * 28  # 5/8 of 256 tokens
    assert processor.num_image_tokens(1754, 1240) <= 160


def test_an_image_that_leaves_no_answer_is_an_error(train, large_images, capsys):
    assert train(**large_images, image_max_pixels=12845056) == 2
    error = capsys.readouterr().err
    assert "its images take 2772 of 256 tokens" in error
    assert "image_max_pixels" in error


def test_pixel_limits_are_for_models_that_have_them(train, capsys):
    assert train(image_max_pixels=10000) == 2
    assert "--image_max_pixels: this model takes every image at one size" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [False, True])
def test_a_frozen_tower_is_computed_once_under_checkpointing(train, monkeypatch, lora):
    """Not once more in the backward pass, for gradients of its inputs that nobody reads."""
    calls = []
    load = model_source.load_base

    def spy(*arguments):
        net = load(*arguments)
        layers = net.model.vision_tower.get_submodule("encoder.layers")
        layers[0].register_forward_hook(lambda module, inputs, output: calls.append(output))
        return net

    monkeypatch.setattr("llava.train.train.load_base", spy)
    lora_flags = {"lora_enable": True, "lora_r": 4} if lora else {}
    assert train(gradient_checkpointing=True, max_steps=1, group_by_modality_length=True, **lora_flags) == 0
    assert len(calls) == 1
    assert not (calls[0][0] if isinstance(calls[0], tuple) else calls[0]).requires_grad


def test_layers_behind_the_features_do_not_learn(train, monkeypatch):
    """They get no gradient, for which DDP would wait: everything that learns has one."""
    nets = []
    choose = model_source.choose_trainable

    def spy(net, *arguments):
        choose(net, *arguments)
        nets.append(net)

    monkeypatch.setattr("llava.train.train.choose_trainable", spy)
    monkeypatch.setattr("torch.optim.Optimizer.zero_grad", lambda *_, **__: None)
    monkeypatch.setattr("torch.nn.Module.zero_grad", lambda *_, **__: None)
    assert train(unfreeze_mm_vision_tower=True, max_steps=1, group_by_modality_length=True) == 0
    learning = [name for name, parameter in nets[0].named_parameters() if parameter.requires_grad]
    assert any("vision_tower" in name for name in learning)
    assert [name for name in learning if nets[0].get_parameter(name).grad is None] == []


def test_lora_is_loadable_with_its_projector(train, bench, tmp_path):
    parts = {"model_name_or_path": bench.root / "lm", "vision_tower": bench.root / "clip"}
    assert train(**parts, lora_enable=True, lora_r=4, lora_alpha=8, mm_projector_lr=1e-2) == 0
    folder = tmp_path / "out"
    assert not (folder / "base_model").exists()
    saved = load_file(folder / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    assert not any("vision_tower" in name and "lora" in name for name in saved)
    merged, processor = load_model_and_processor(folder)
    projector = next(tensor for name, tensor in saved.items() if name.endswith("projector.linear_1.weight"))
    assert torch.equal(merged.get_submodule("model.multi_modal_projector").linear_1.weight, projector)
    assert processor.default_template == "v1"


@pytest.mark.parametrize(("bits", "layer"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_qlora_trains_on_quantized_layers(train, tmp_path, monkeypatch, bits, layer):
    pytest.importorskip("bitsandbytes", reason="pip install 'visatb[qlora]'; importing it slows every other test")
    kinds = {}
    load = model_source.load_base

    def spy(*arguments):
        net = load(*arguments)
        kinds.update({name: type(module).__name__ for name, module in net.named_modules()})
        return net

    monkeypatch.setattr("llava.train.train.load_base", spy)
    assert train(lora_enable=True, lora_r=4, bits=bits, bf16=True, learning_rate=1e-2) == 0
    quantized = {name for name, kind in kinds.items() if kind == layer}
    assert any(name.endswith("q_proj") for name in quantized)
    assert not any("vision_tower" in name or "projector" in name or "lm_head" in name for name in quantized)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in saved.items())
    model, _ = load_model_and_processor(tmp_path / "out")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_stopped_and_gone_on_equals_straight(train, tmp_path, monkeypatch, lora):
    flags = {"max_steps": 6, "gradient_accumulation_steps": 2, "weight_method": "DWA", "dwa_window": 1}
    flags |= {"group_by_modality_length": True, "dataloader_num_workers": 1, "save_steps": 100}
    if lora:
        flags |= {"lora_enable": True, "lora_r": 4}
    assert train("straight", **flags) == 0

    step, calls = LlavaTrainer.training_step, []

    def signalled(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == 7:  # in the middle of the fourth optimizer step
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LlavaTrainer, "training_step", signalled)
    assert train("stopped", **flags) == 143
    folder = tmp_path / "stopped"
    assert (folder / "preempted").is_file()
    assert not (folder / "run_card.json").exists()
    assert 3 <= max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")) < 6
    assert train("stopped", **flags) == 0
    assert not (folder / "preempted").exists()
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    straight, resumed = load_file(tmp_path / "straight" / file), load_file(folder / file)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    logs = [read_json(tmp_path / run / "trainer_state.json")["log_history"][5] for run in ("straight", "stopped")]
    assert any(value != 1 for key, value in logs[0].items() if key.startswith("task_weight"))
    assert logs[0] == logs[1]


def test_a_diverged_training_is_no_finished_model(train, tmp_path, capsys):
    assert train(learning_rate=1e3, max_steps=12) == 3
    assert re.search(r"error: step \d+: the (loss|norm of the gradient) .*not finite", capsys.readouterr().err)
    assert not {path.name for path in (tmp_path / "out").iterdir()} & {"run_card.json", "config.json"}
    assert (tmp_path / "out" / "diverged").read_text().startswith("step ")


def test_weights_that_the_last_update_spoiled_are_no_finished_model(train, tmp_path, monkeypatch, capsys):
    finish = LlavaTrainer._finalize_training

    def spoil(self, *args):
        next(self.model.lm_head.parameters()).data[0, 0] = float("nan")
        return finish(self, *args)

    monkeypatch.setattr(LlavaTrainer, "_finalize_training", spoil)
    assert train(save_strategy="no") == 3
    assert "step 2: 1 saved tensors hold NaN or infinities (" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["diverged", "run_settings.json"]
    monkeypatch.undo()
    assert train(save_strategy="no") == 0
    assert not (tmp_path / "out" / "diverged").exists()


@pytest.mark.parametrize("kind", ["flipped", "cut", "removed", "unmarked"])
def test_a_damaged_model_of_parts_is_made_again(train, bench, tmp_path, monkeypatch, caplog, kind):
    """Damaged between two starts of a run that is not finished: it ends as one that was left alone."""
    parts = {"model_name_or_path": bench.root / "lm", "vision_tower": bench.root / "clip"}
    assert train("straight", **parts) == 0
    with monkeypatch.context() as patched:
        patched.setattr("llava.train.train.load_base", refuse_to_load)
        with pytest.raises(AssertionError, match="was loaded"):
            train(**parts)
    file = tmp_path / "out" / "base_model" / ("complete" if kind == "unmarked" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if kind in ("removed", "unmarked"):
        file.unlink()
    else:
        file.write_bytes(content if kind == "flipped" else content[: len(content) // 2])
    assert train(**parts) == 0
    assert "base_model: " in caplog.text
    assert "it is made again" in caplog.text
    assert not changed_parts(weights(tmp_path / "straight"), weights(tmp_path / "out"))


def test_a_finished_run_is_left_and_another_refused(train, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "progress.json"))
    assert train() == 0
    noted = read_json(tmp_path / "progress.json")
    assert (noted["done"], noted["total"], noted["left"]) == (2, 2, 0)
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING, "llava.train"):
        assert train() == 0
    assert "finished: nothing to do" in caplog.text
    assert train(learning_rate=1e-4) == 2
    assert "differs in learning_rate (0.001 there, 0.0001 here)" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    assert train(learning_rate=1e-4, overwrite_output_dir=True) == 0
    assert read_json(tmp_path / "out" / "run_card.json")["arguments"]["learning_rate"] == 1e-4


def test_evaluation_reports_each_task(train, bench, tmp_path):
    data = bench.data(ACADEMIC, num=16)
    assert train(eval_data_path=data, evaluation_strategy="steps", eval_steps=2, task_names=" ".join(ACADEMIC)) == 0
    history = read_json(tmp_path / "out" / "trainer_state.json")["log_history"]
    evaluated = next(entry for entry in history if "eval_loss" in entry)
    assert {f"eval_loss_{name}" for name in ACADEMIC} <= set(evaluated)


def refuse_to_load(*args, **kwargs):
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"visatb_weights": "1 2", "task_names": " ".join(ACADEMIC)}, "2 weights for 8 tasks"),
        ({"task_names": "A B"}, "ShareGPT4V"),
        ({"num_tasks": 3}, "--num_tasks 3, but there are 8 tasks"),
        ({"version": "v9"}, "v9"),
        ({"mm_projector_type": "linear"}, "with mm_projector_type mlp2x_gelu, not linear"),
        ({"mm_vision_select_layer": -1}, "with mm_vision_select_layer -2, not -1"),
        ({"pretrain_mm_mlp_adapter": "x.bin"}, "a projector of its own"),
        ({"model_max_length": 99999}, "exceeds the 2048 positions"),
        ({"model_name_or_path": "LM"}, "name a --vision_tower"),
        ({"model_name_or_path": "LM", "vision_tower": "LM"}, "a vision tower must be one of"),
        ({"model_name_or_path": "LM", "vision_tower": "CLIP", "mm_projector_type": "identity"}, "equal widths"),
        ({"model_name_or_path": "CLIP"}, "clip"),
        ({"model_name_or_path": "QWEN", "image_aspect_ratio": "pad"}, "for LLaVA models only"),
        ({"model_name_or_path": "QWEN", "mm_projector_type": "linear"}, "--mm_projector_type is for LLaVA"),
        ({"freeze_backbone": True, "freeze_mm_mlp_adapter": True}, "nothing is left to train"),
        ({"lora_enable": True, "bits": 4}, "needs bitsandbytes"),
        ({"file_tasks": '{"other.json":"A"}'}, "other.json not among the data files"),
    ],
)
def test_bad_input_is_named_before_the_model_is_loaded(train, bench, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("llava.train.train.load_base", refuse_to_load)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    places = {"LM": bench.root / "lm", "CLIP": bench.root / "clip", "QWEN": bench.root / "qwen"}
    assert train(**{name: places.get(value, value) for name, value in flags.items()}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_bad_records_are_named_and_the_folder_stays_free(train, bench, tmp_path, capsys):
    records = json.loads(bench.data(ACADEMIC).read_text())
    records[0]["image"] = "gone.png"
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(records))
    assert train(data_path=file) == 2
    error = capsys.readouterr().err
    assert "gone.png" in error
    assert "record r0" in error
    assert not (tmp_path / "out").exists()
    assert train(data_path=file, bad_samples="skip") == 0
    assert read_json(tmp_path / "out" / "run_card.json")["index"]["skipped"] == {"missing_image": 1}
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped_records.jsonl").read_text().splitlines()]
    assert [record["reason"] for record in listed] == ["missing_image"]


def test_a_crash_while_saving_loses_nothing(train, tmp_path, monkeypatch):
    assert train("straight") == 0
    with monkeypatch.context() as patched:
        patched.setattr("llava.train.train.publish", refuse_to_load)
        with pytest.raises(AssertionError, match="was loaded"):
            train()
    folder = tmp_path / "out"
    assert not (folder / "config.json").exists()
    assert not (folder / "run_card.json").exists()
    assert train() == 0
    assert not changed_parts(weights(tmp_path / "straight"), weights(folder))
    assert read_json(folder / "run_card.json")["steps"] == 2
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".", "checkpoint"))]


def test_weights_as_sampling_ratios(train, bench, tmp_path, capsys):
    """The card says so, the same command goes on; the counts that the draws take are those of the labels."""
    names = {"task_names": " ".join(ACADEMIC), "visatb_weights": " ".join(["0.5", "1.5"] * 4)}
    assert train("loss", **names) == 0
    assert train("drawn", **names, apply_weights="sampling") == 0
    card = read_json(tmp_path / "drawn" / "run_card.json")
    assert card["arguments"]["apply_weights"] == card["settings"]["apply_weights"] == "sampling"
    assert card["weights"] == dict(zip(ACADEMIC, [0.5, 1.5] * 4, strict=True))
    assert "apply_weights" not in read_json(tmp_path / "loss" / "run_card.json")["settings"]
    assert changed_parts(*(weights(tmp_path / name) for name in ("loss", "drawn")))
    log = read_json(tmp_path / "drawn" / "trainer_state.json")["log_history"]
    assert {entry[f"task_weight/{ACADEMIC[0]}"] for entry in log if "task_weight/VQAv2" in entry} == {1.0}
    assert train("other", apply_weights="sampling") == 2
    assert "needs --visatb_weights" in capsys.readouterr().err
    assert train("other", **names, apply_weights="sampling", group_by_modality_length=True) == 2
    assert "not with --group_by_modality_length" in capsys.readouterr().err
