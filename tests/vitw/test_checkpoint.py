"""Checkpoints are loaded whole or not at all."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vitw.workbench import tiny_model
from transformers_patch.checkpoint import load_full_model


def test_full_model_comes_back_bit_for_bit(tmp_path):
    saved, fresh = tiny_model(seed=1), tiny_model(seed=2)
    saved.save_pretrained(tmp_path)
    load_full_model(fresh, str(tmp_path))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_checkpoint_with_missing_or_misfit_weights_is_refused(tmp_path, fault):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj.weight" in name and "language" in name)
    weights[name] = weights[name][:1].clone()
    if fault == "missing":
        del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"not a whole|size mismatch|mismatch"):
        load_full_model(tiny_model(), str(tmp_path))
