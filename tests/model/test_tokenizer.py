"""A loaded tokenizer gives sentencepiece's ids, whatever transformers or an earlier version made of them."""

import copy
import json
import pickle
import random
import shutil

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llava.model import convert
from llava.model.assemble import build_llava
from llava.model.family import family_of
from llava.model.tokenizer import load_tokenizer, reading
from tests import tiny
from tests.data.llava_oracle import SlowLlamaTokenizer

WRONG = ["▁▁", "It"]  # what transformers 5 makes of "  It"
TEXTS = [
    "dog.  It",
    "Hi  Hello",
    "\n    return",
    " leading",
    "   x",
    "def f():\n    if a:\n        return  1\n",
    "a</s>b",
    "a</s> b",
    "</s>x",
]


@pytest.fixture(scope="module")
def reference():
    return SentencePieceProcessor(model_file=str(tiny.sentencepiece_file()))


@pytest.fixture
def folder(parts, tmp_path):
    """A language model's tokenizer as vicuna-7b-v1.5 has it: tokenizer.model and its settings."""
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(parts[0] / name, tmp_path)
    return tmp_path


def set_keys(folder, **values):
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def write_as_transformers_does(folder):
    """The tokenizer.json that earlier versions left beside tokenizer.model."""
    stock = AutoTokenizer.from_pretrained(folder)
    assert stock.tokenize("dog.  It")[2:] == WRONG, "transformers orders merges by score now: is the mend still needed?"
    stock.backend_tokenizer.save(str(folder / "tokenizer.json"))


def assert_sentencepiece_ids(tokenizer, reference, seed=0):
    rng = random.Random(seed)
    alphabets = ("abc ", "   \n\tab", "aeionthsr. ", "é漢😀▁ ", "01.,", "def return:    \n")
    texts = ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 60))) for _ in range(500)]
    texts += [" " * run + "x" + " " * gap + "y" for run in range(20) for gap in range(20)]
    for text in texts:
        assert tokenizer(text, add_special_tokens=False).input_ids == reference.encode(text), text


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_llavas_tokenizer(folder, legacy, caplog):
    set_keys(folder, legacy=legacy)
    tokenizer = load_tokenizer(folder)
    slow = SlowLlamaTokenizer(folder / "tokenizer.model", legacy)
    for text in TEXTS:
        assert tokenizer(text).input_ids == slow.ids(text), text
    assert not caplog.records


def test_known_pieces(folder):
    """transformers' own test of Llama's vocabulary says "Hi", "▁", "▁Hello"."""
    assert load_tokenizer(folder).tokenize("Hi  Hello") == ["▁Hi", "▁", "▁Hello"]


def test_any_text(folder, reference):
    assert_sentencepiece_ids(load_tokenizer(folder), reference)


def test_wrong_file_of_an_earlier_version_is_mended_with_a_warning(folder, reference, caplog):
    write_as_transformers_does(folder)
    tokenizer = load_tokenizer(folder)
    assert_sentencepiece_ids(tokenizer, reference)
    [record] = caplog.records
    assert "sentencepiece's ids are used" in record.message
    assert str(folder) in record.message
    tokenizer.save_pretrained(folder)  # what is written is right, also to transformers itself
    caplog.clear()
    assert AutoTokenizer.from_pretrained(folder).tokenize("dog.  It")[2:] == ["▁", "▁It"]
    assert_sentencepiece_ids(load_tokenizer(folder), reference)
    assert not caplog.records


def test_copies_keep_the_mended_ids(folder, reference):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert_sentencepiece_ids(other, reference)
        assert other.tokenize("a  b<image>") == ["▁a", "▁", "▁b", "<image>"]


@pytest.mark.parametrize("way", ["built", "converted"])
def test_outputs_hold_the_right_tokenizer(way, parts, original_folder, reference, tmp_path):
    if way == "built":
        build_llava(*parts)[1].save_pretrained(tmp_path / "out")
    else:
        convert.from_original(original_folder, tmp_path / "out")
    written = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in TEXTS[:-3]:
        assert written.encode(text, add_special_tokens=False).ids == reference.encode(text)
    if way == "converted":
        assert_sentencepiece_ids(family_of(tmp_path / "out").load_processor(tmp_path / "out").tokenizer, reference)


def test_files_of_two_tokenizers_are_refused(folder):
    write_as_transformers_does(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["▁dog"], vocab["▁cat"] = vocab["▁cat"], vocab["▁dog"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not of one tokenizer") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "'▁" in str(caught.value)


def test_what_still_differs_is_refused(folder):
    """Right vocabulary and merges, but the file turns text into lower case first."""
    write_as_transformers_does(folder)
    set_keys(folder, tokenizer_class="PreTrainedTokenizerFast")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its tokenizer makes .* of 'The quick brown fox"):
        load_tokenizer(folder)


def test_unreadable_sentencepiece_file_is_named(folder):
    write_as_transformers_does(folder)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"tokenizer\.model: sentencepiece cannot read it"):
        load_tokenizer(folder)


def test_wrong_file_without_sentencepiece_model_is_said(folder, caplog):
    write_as_transformers_does(folder)
    (folder / "tokenizer.model").unlink()
    load_tokenizer(folder)
    assert "put the language model's tokenizer.model there" in caplog.text


def test_legacy_is_llavas_default_where_the_folder_leaves_it_out(folder):
    set_keys(folder, legacy=None)
    assert load_tokenizer(folder)("a</s>USER").input_ids == SlowLlamaTokenizer(folder / "tokenizer.model", True).ids(
        "a</s>USER"
    )


def test_other_kinds_of_tokenizers_are_left_alone(tmp_path, caplog):
    tokenizer = tiny.tiny_qwen_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert not caplog.records


def test_a_reading_is_that_of_the_mended_tokenizer(folder, tmp_path_factory):
    mended = reading(folder)
    write_as_transformers_does(folder)
    assert reading(folder) == mended
    (folder / "tokenizer.model").unlink()  # nothing to mend it by
    assert reading(folder) not in (None, mended)
    assert reading(tiny.tiny_qwen2_vl(tmp_path_factory.mktemp("qwen"))) is None
