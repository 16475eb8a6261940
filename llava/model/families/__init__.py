"""One file per model family; registered in ``llava.model.family``."""
