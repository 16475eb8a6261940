"""The hooks of transformers' Trainer that VitwTrainer and its mix-in stand on, the private ones above all."""

import inspect

import pytest
from transformers import Trainer

import transformers_patch
from transformers_patch import VitwMixin, VitwTrainer

HOOKS = {
    "get_train_dataloader": [],
    "get_eval_dataloader": ["eval_dataset"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "log": ["logs", "start_time"],
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    "evaluation_loop": None,  # taken and handed on as they come
    "_run_epoch": None,
    "_set_signature_columns_if_needed": [],
    "_get_grad_norm": ["model", "grad_norm"],
    "_save_checkpoint": ["model", "trial"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
}
"""Overridden method → its parameters."""
OURS = {**vars(VitwMixin), **vars(VitwTrainer)}
CALLED = ("_prepare_inputs", "_get_output_dir")
"""Private methods that are called as they are."""


def test_these_are_all_overrides():
    ours = {name for name, value in OURS.items() if callable(value) and hasattr(Trainer, name)}
    assert ours - {"__init__"} == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_there_with_its_parameters_and_the_override_says_why(name):
    stock = [parameter for parameter in inspect.signature(getattr(Trainer, name)).parameters if parameter != "self"]
    if HOOKS[name] is not None:
        assert stock == HOOKS[name]
    for owner in (VitwMixin, VitwTrainer):
        assert name not in vars(owner) or vars(owner)[name].__doc__


def test_the_hooks_are_called_by_the_trainer():
    """A hook that transformers no longer calls would be passed over without a word."""
    source = inspect.getsource(Trainer)
    for name in HOOKS:
        assert source.count(f"self.{name}(") >= 1, name
    for name in CALLED:
        assert callable(getattr(Trainer, name))
    assert 'kwargs["epoch"]' in inspect.getsource(OURS["_run_epoch"])
    assert "epoch" in inspect.signature(Trainer._run_epoch).parameters


def test_public_names():
    for name in transformers_patch.__all__:
        assert getattr(transformers_patch, name).__name__ if name != "WEIGHTERS" else transformers_patch.WEIGHTERS
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = transformers_patch.no_such_name
