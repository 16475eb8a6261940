"""Names of files in a training's folder. No imports: the workflow's commands read them without loading torch."""

from __future__ import annotations

SETTINGS = "run_settings.json"
CARD = "run_card.json"
PREEMPTED = "preempted"
DIVERGED = "diverged"
BASE_MODEL = "base_model"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
