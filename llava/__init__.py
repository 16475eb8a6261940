"""Multimodal models, their data and their training."""
