"""Answering questions with a checkpoint: batched generation, and answer files that a killed run goes on from."""
