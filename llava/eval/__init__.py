"""Zero-shot benchmarks by their official protocols: one file each, one runner (`visatb zeroshot`)."""
