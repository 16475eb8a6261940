"""Checkpoints are loaded whole or not at all."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vitw.workbench import parameters, run, tiny_model
from transformers_patch.checkpoint import find_damage, last_complete_checkpoint, load_full_model


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


OPTIONS = {"save_strategy": "steps", "save_steps": 2, "samples": 41}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 steps with checkpoints 2, 4 and 6, and its parameters."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, parameters(run(folder, "DWA", **OPTIONS, max_steps=6).model)


def names(folder):
    return sorted(file.name for file in (folder / "checkpoint-4").iterdir())


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoil_start(file):
    """The size stays; headers, brackets and marks of formats go."""
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


@pytest.mark.parametrize("damage", [remove, empty, halve])
def test_every_lost_or_cut_file_is_noticed_and_named(whole, tmp_path, damage):
    for name in names(whole[0]):
        if name == "complete" and damage is not halve:
            continue  # a checkpoint that was never finished; one of an earlier version
        folder = tmp_path / name / "checkpoint-4"
        shutil.copytree(whole[0] / "checkpoint-4", folder)
        assert find_damage(folder) is None
        damage(folder / name)
        assert find_damage(folder).startswith(f"{name} ")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "trainer_state.json", "weighter.json", "complete"]
)
def test_a_file_of_the_right_size_that_cannot_be_opened_is_noticed(whole, tmp_path, name):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(whole[0] / "checkpoint-4", folder)
    spoil_start(folder / name)
    assert find_damage(folder) == f"{name} cannot be read"


@pytest.mark.parametrize("kept", [(2, 4), (4,)], ids=["from the one before", "from the start"])
def test_a_damaged_checkpoint_is_put_aside_and_the_result_is_the_same(whole, tmp_path, caplog, kept):
    for step in kept:
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    with caplog.at_level(logging.WARNING, "transformers_patch"):
        resumed = run(tmp_path, "DWA", resume=True, **OPTIONS, max_steps=6)
    aside = "is damaged (optimizer.pt is missing): put aside as damaged-checkpoint-4"
    assert [record.message for record in caplog.records if aside in record.message] == [
        f"{tmp_path}/checkpoint-4 {aside}"
    ]
    assert (tmp_path / "damaged-checkpoint-4" / "config.json").is_file()
    assert find_damage(tmp_path / "checkpoint-4") is None  # made again
    assert all(torch.equal(value, parameters(resumed.model)[name]) for name, value in whole[1].items())


def test_a_checkpoint_of_an_earlier_version_is_used_while_whole(whole, tmp_path):
    """Its `complete` is empty."""
    shutil.copytree(whole[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    empty(tmp_path / "checkpoint-4" / "complete")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    for name in ("optimizer.pt", "scheduler.pt", "config.json", "model.safetensors", "weighter.json"):
        for damage in (remove, empty, halve):
            folder = tmp_path / name / damage.__name__ / "checkpoint-4"
            shutil.copytree(tmp_path / "checkpoint-4", folder)
            damage(folder / name)
            assert find_damage(folder).startswith(f"{name} "), damage
            assert last_complete_checkpoint(folder.parent) is None


def test_weights_without_the_optimizers_state_are_not_gone_on_from(tmp_path, caplog):
    run(tmp_path, "EW", save_strategy="steps", save_steps=1, max_steps=1, save_only_model=True)
    assert last_complete_checkpoint(tmp_path) is None
    assert "holds no state of the optimizer" in caplog.text
    assert (tmp_path / "checkpoint-1").is_dir()
