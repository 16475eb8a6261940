"""Original LLaVA's checkpoints against transformers': names, configuration, processor, whole models, LoRA."""
