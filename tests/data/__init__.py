"""Tests of templates, index, dataset and collator."""
