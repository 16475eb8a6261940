"""Instruction data between LLaVA's JSON, messages, parquet with images, and other trainers' weighted forms."""
