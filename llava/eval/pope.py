"""POPE: is this object in the image? Three splits of COCO val2014: random, popular, adversarial.

Files: `pope/coco/coco_pope_{random,popular,adversarial}.json`, `pope/val2014/`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import (
    Benchmark,
    Questions,
    Result,
    Score,
    make_record,
    prediction,
    truth_of,
)
from llava.eval.files import find, read_rows

SPLITS = ("random", "popular", "adversarial")
_NO = {"No", "no", "not"}
_YES_OR_NO = re.compile(r"\b(?:yes|no|not)\b", re.IGNORECASE)


class Pope(Benchmark):
    """F1 of "yes", averaged over the three splits, as LLaVA-v1.5 reports it."""

    name = "pope"
    title = "POPE"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """Split by split."""
        paths = {split: find(data, f"pope/coco/coco_pope_{split}.json", what="POPE's questions") for split in SPLITS}
        images = find(data, "pope/val2014", what="COCO val2014")
        records = []
        for split, path in paths.items():
            for row in read_rows(path, "question_id", "image", "text", "label"):
                if row["label"] not in ("yes", "no"):
                    raise DataError(f"{path}, question {row['question_id']}: its label is {row['label']!r}")
                prompt = f"{row['text']}\n{SHORT_ANSWER}"
                name = f"{split}-{row['question_id']}"
                records.append(make_record(self.name, name, prompt, row["image"], row["label"], category=split))
        return Questions(records, images)

    def score(self, answers: Sequence[Record]) -> Result:
        """F1, accuracy, precision, recall and the share of "yes", each the mean over splits."""
        groups = {}
        for split in SPLITS:
            of_split = [answer for answer in answers if answer["category"] == split]
            if of_split:
                pairs = [(says_yes(prediction(answer)), truth_of(answer) == "yes") for answer in of_split]
                groups[split] = ratios(pairs)
        metrics = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        scores = [Score(m, math.fsum(part[m] for part in groups.values()) / len(groups)) for m in metrics]
        unclear = sum(not _YES_OR_NO.search(prediction(answer)) for answer in answers)
        return Result(scores, unclear, groups)


def says_yes(answer: str) -> bool:
    """The protocol's reading: "no" where its first sentence has the word No, no or not, else "yes"."""
    return not _NO & set(answer.split(".", 1)[0].replace(",", "").split(" "))


def ratios(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """From (answered yes, is yes) pairs; a ratio without cases is 0."""
    both = sum(said and true for said, true in pairs)
    said, true = sum(said for said, _ in pairs), sum(true for _, true in pairs)
    precision = both / said if said else 0.0
    recall = both / true if true else 0.0
    return {
        "f1": 2 * both / (said + true) if said + true else 0.0,
        "accuracy": sum(said == true for said, true in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes_ratio": said / len(pairs),
        "num_samples": len(pairs),
    }
