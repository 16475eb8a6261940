"""VQA accuracy with the answer normalisation of LLaVA's scripts for TextVQA, VQAv2 and VizWiz.

It is the VQA challenge's in the form that TextVQA's evaluator (M4C) gave it, oddities included, so that values are
those of the published scripts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_COUNTED)}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the official code passes re.UNICODE, whose value is 32, where `re.sub` takes the largest count
# Words that the challenge spells with apostrophes where an answer left out one of them. Its table has I'm, I've and
# I'd've with a capital, which no word of a lower-cased answer is: "im" stays.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings(word: str) -> list[str]:
    """`word` without one of its apostrophes."""
    return [word[:index] + word[index + 1 :] for index, letter in enumerate(word) if letter == "'"]


_APOSTROPHES = {form: word for word in _CONTRACTIONS.split() for form in _misspellings(word)}
_APOSTROPHES["somebody'd"] = "somebodyd"  # the table's own slip, the wrong way round


def normalize(answer: str) -> str:
    """An answer in the form in which answers are compared: lower case, digits, no articles, no punctuation.

    A mark beside a blank vanishes everywhere in the answer, else it becomes a blank; a full stop stays only before a
    digit, or after 32 others that went.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    spaced = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in spaced or f" {mark}" in spaced
        text = text.replace(mark, "" if beside_blank else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", text, count=_FULL_STOPS).split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The mean, over leaving out each of the people's answers once, of min(1, matches among the others ÷ 3)."""
    given = normalize(answer)
    people = [normalize(reference) for reference in references]
    matches = Counter(people)[given]
    return sum(min(1.0, (matches - (person == given)) / 3) for person in people) / len(people)
