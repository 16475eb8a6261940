"""`llava.train.make_base`: a LLaVA of its parts, saved without training."""

import torch

from llava.model.assemble import build_llava
from llava.model.load import load_model_and_processor
from llava.model.projector import VisionFeatures
from llava.train.make_base import main


def test_parts_become_a_saved_model(bench, tmp_path):
    out = tmp_path / "base"
    parts = ["--model_name_or_path", str(bench.root / "lm"), "--vision_tower", str(bench.root / "clip")]
    flags = ["--mm_vision_select_layer", "-1", "--model_max_length", "64", "--version", "plain"]
    assert main([*parts, *flags, "--output_dir", str(out)]) == 0
    assert not (out / "base_model").exists()
    model, processor = load_model_and_processor(out)
    wanted, _ = build_llava(bench.root / "lm", bench.root / "clip", VisionFeatures(layer=-1))
    assert model.config.vision_feature_layer == -1
    assert (processor.default_template, processor.tokenizer.model_max_length) == ("plain", 64)
    for name, weight in wanted.state_dict().items():
        if "projector" not in name:  # which is drawn at random
            assert torch.equal(model.state_dict()[name], weight), name


def test_the_projector_is_drawn_by_the_seed(bench, tmp_path):
    """Two makings are equal to the byte; another seed gives another projector, and nothing else."""
    parts = ["--model_name_or_path", str(bench.root / "lm"), "--vision_tower", str(bench.root / "clip")]
    made = {}
    for name, more in (("a", ()), ("b", ("--seed", "42")), ("c", ("--seed", "43"))):
        torch.manual_seed(ord(name))  # whatever the process drew before
        assert main([*parts, *more, "--model_max_length", "64", "--output_dir", str(tmp_path / name)]) == 0
        made[name] = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert made["a"] == made["b"]
    assert {name for name in made["a"] if made["a"][name] != made["c"][name]} == {"model.safetensors"}


def test_bad_input_is_said_in_one_line(bench, tmp_path, capsys):
    lm, out = str(bench.root / "lm"), str(tmp_path / "out")
    assert main(["--model_name_or_path", lm, "--output_dir", out, "--model_max_length", "64"]) == 2
    assert "name a --vision_tower" in capsys.readouterr().err
    assert (
        main(["--model_name_or_path", str(bench.root / "llava"), "--output_dir", out, "--model_max_length", "64"]) == 2
    )
    assert "is a model already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
