"""From instruction records in JSON to batches: templates, index, dataset, collator, order."""
