"""The one place that loads a tokenizer, and holds it against sentencepiece where the folder has ``tokenizer.model``.

transformers 5 makes its fast tokenizer from ``tokenizer.model`` with the merges in the order of token ids.
Sentencepiece merges by the pieces' scores, and in Llama's vocabulary runs of spaces stand early but score last:
"dog.  It" is ``▁dog . ▁ ▁It``, as Llama was trained, and not ``▁dog . ▁▁ It``. It also leaves out the ``▁`` before a
text that begins with a space. Both are mended here; what still differs from sentencepiece is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SENTENCEPIECE_FILE = "tokenizer.model"
TOKENIZER_FILES = (SENTENCEPIECE_FILE, "tokenizer.json")
_SPACE = "▁"
PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "One sentence.  Another one.   A third:    done. ",
    " one space before",
    "   three spaces before",
    "def f(x):\n    if x:\n        return  x\n\n\treturn None\n",
    "```python\nfor i in range(10):\n            print(i)                # far\n```",
    "\nA line.\n\n- a list\n  - within a list\r\n",
    "USER: What is it? ASSISTANT: A red bus, [0.12, 0.34, 0.56, 0.78].",
    "L'été à Zürich; naïve façade, Łódź, čeština, Ελληνικά, русский, עברית, العربية",
    "图中有两只猫。これは猫です。 고양이 😀👩‍👩‍👧",
    "a▁b \u00a0c\u200bd ﬁ ½ e\u0301 <0x0A> <im_start> \\n {x: 1.5e-3}",
    " " * 33 + "x" + " " * 16 + "\n" * 3 + " ",
)
"""What a loaded tokenizer is compared on: double spaces, indented code, newlines, languages, symbols."""


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or repository, with sentencepiece's ids where it is a sentencepiece tokenizer.

    Raises:
        ValueError: its ids are not those of the folder's ``tokenizer.model``, or that file cannot be read.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, **_unsaid_settings(Path(folder)))
    if not _is_sentencepiece_like(tokenizer):
        return tokenizer
    backend = tokenizer.backend_tokenizer
    _prefix_every_text(backend)
    file = sentencepiece_file(folder, tokenizer)
    if file is None:
        if _merges_runs_of_spaces_first(backend):
            logger.warning(
                "%s: its tokenizer.json joins spaces before words, which Llama's sentencepiece does last, and there is "
                "no tokenizer.model to mend it by: put the language model's tokenizer.model there",
                folder,
            )
        return tokenizer
    _agree(backend, read_sentencepiece(file), Path(folder))
    return tokenizer


def reading(folder: str | os.PathLike[str]) -> str | None:
    """What stands for how a sentencepiece tokenizer cuts text: a hash of it as it is loaded; None for other kinds.

    Other kinds read as their files say. This one is mended here, so that its files alone do not decide the ids.
    Raises ValueError as `load_tokenizer` does.
    """
    tokenizer = load_tokenizer(folder)
    if not _is_sentencepiece_like(tokenizer):
        return None
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def sentencepiece_file(folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """The ``tokenizer.model`` of a model folder, or the one that ``tokenizer`` was made from; None if there is none."""
    for file in (Path(folder) / SENTENCEPIECE_FILE, getattr(tokenizer, "vocab_file", None)):
        if file is not None and Path(file).name == SENTENCEPIECE_FILE and Path(file).is_file():
            return Path(file)
    return None


def read_sentencepiece(file: Path) -> SentencePieceProcessor:
    """The model in ``file``. Raises ValueError where it is not readable."""
    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file}: sentencepiece cannot read it ({error}); copy it from the model again") from error


def first_difference(
    backend: Tokenizer, reference: SentencePieceProcessor, texts: tuple[str, ...] = PROBES
) -> tuple[str, list[str], list[str]] | None:
    """The first text that the two cut differently: it and both lists of pieces, from where they part; None if none."""
    for text in texts:
        ours = backend.encode(text, add_special_tokens=False)
        theirs = reference.encode(text)
        if ours.ids != theirs:
            pieces = [reference.id_to_piece(token) for token in theirs]
            pairs = enumerate(zip(ours.ids, theirs, strict=False))
            start = next((index for index, (one, other) in pairs if one != other), min(len(ours.ids), len(theirs)))
            return text, ours.tokens[start : start + 4], pieces[start : start + 4]
    return None


def merges_by_score(reference: SentencePieceProcessor) -> list[tuple[str, str]]:
    """Byte-pair merges in the order in which sentencepiece makes them: the best scored piece first.

    Of equally scored pieces (the runs of spaces) sentencepiece makes the leftmost one first. That is what comes of
    putting the longer left part first: a run grows from its left end.
    """
    scores = {
        reference.id_to_piece(token): reference.get_score(token)
        for token in range(reference.get_piece_size())
        if _is_text(reference, token)
    }
    merges = [
        (score, len(piece[:cut]), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[:2], reverse=True)
    return [(left, right) for *_, left, right in merges]


def _unsaid_settings(folder: Path) -> dict[str, Any]:
    """``legacy`` where a folder of LLaVA's time leaves it out: its transformers took True, today's takes False."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / SENTENCEPIECE_FILE).is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    return {} if "legacy" in settings else {"legacy": True}


def _is_sentencepiece_like(tokenizer: PreTrainedTokenizerBase) -> bool:
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    return isinstance(model, BPE) and model.byte_fallback


def _agree(backend: Tokenizer, reference: SentencePieceProcessor, folder: Path) -> None:
    """Give ``backend`` the merges of ``reference`` where the two differ. Raises ValueError where that does not do."""
    _check_vocabulary(backend, reference, folder)
    found = first_difference(backend, reference)
    if found is None:
        return
    _order_merges(backend, reference)
    still = first_difference(backend, reference)
    if still is not None:
        text, ours, theirs = still
        raise ValueError(
            f"{folder}: its tokenizer makes {ours} of {text!r}, its tokenizer.model (sentencepiece) {theirs}: the "
            "files are not of one tokenizer, or it is none of Llama's kind; keep those that belong to the model"
        )
    if (folder / "tokenizer.json").is_file():
        logger.warning(
            "%s: tokenizer.json gives %s where its tokenizer.model (sentencepiece) gives %s; sentencepiece's ids are "
            "used. A model that was trained with such a tokenizer.json has learned the others.",
            folder,
            *found[1:],
        )


def _prefix_every_text(backend: Tokenizer) -> None:
    """Put ``▁`` before a text that begins with a space too, as sentencepiece does.

    `Metaspace` sees that a text begins with its mark and adds none. So spaces become the mark first, then a `Metaspace`
    whose own mark is a space puts one before, which becomes a mark at last.
    """
    stock = backend.pre_tokenizer
    if isinstance(stock, pre_tokenizers.Metaspace) and stock.prepend_scheme != "never":
        to_mark = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False)
        prefix = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=stock.prepend_scheme, split=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([to_mark, prefix, to_mark])


def _order_merges(backend: Tokenizer, reference: SentencePieceProcessor) -> None:
    model = backend.model
    backend.model = BPE(
        vocab=backend.get_vocab(with_added_tokens=False),
        merges=merges_by_score(reference),
        unk_token=model.unk_token,
        fuse_unk=model.fuse_unk,
        byte_fallback=model.byte_fallback,
    )


def _check_vocabulary(backend: Tokenizer, reference: SentencePieceProcessor, folder: Path) -> None:
    held = backend.get_vocab(with_added_tokens=True)
    for token in range(reference.get_piece_size()):
        piece = reference.id_to_piece(token)
        if _is_text(reference, token) and held.get(piece) != token:
            raise ValueError(
                f"{folder}: {piece!r} is token {token} in tokenizer.model and {held.get(piece)} in "
                "tokenizer.json: they are not of one tokenizer; keep the one that belongs to the model"
            )


def _is_text(reference: SentencePieceProcessor, token: int) -> bool:
    """Whether a piece is made of text, and is no control mark, byte or unknown."""
    kinds = (reference.is_control, reference.is_byte, reference.is_unknown, reference.is_unused)
    return not any(is_kind(token) for is_kind in kinds)


def _merges_runs_of_spaces_first(backend: Tokenizer) -> bool:
    merges = json.loads(backend.to_str())["model"]["merges"]
    return bool(merges) and list(merges[0]) == [_SPACE, _SPACE]
