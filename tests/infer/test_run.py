"""`inference_visatb.py` from end to end on tiny checkpoints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from inference_visatb import main
from llava.infer import run
from llava.infer.answers import Journal
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator
from llava.model.load import load_model_and_processor
from llava.progress import VARIABLE
from tests.infer.conftest import write

ROOT = Path(__file__).parents[2]


def command(checkpoint, world, *more, out="out", files=("vqa_val-7.json", "cap_val-5.json")):
    paths = [str(world / name) for name in files]
    words = ["--model-path", str(checkpoint), "--image-folder", str(world / "images"), "--question-file", *paths]
    return [*words, "--answers-folder", str(world / out), "--max_new_tokens", "6", *more]


def read(path):
    return json.loads(Path(path).read_text())


def listing(folder):
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def asked(monkeypatch):
    """Ids of all prompts that reach a generator, in order."""
    seen = []
    generate = Generator.generate_batches

    def watch(self, prompts):
        for batch in generate(self, prompts):
            seen.extend(place for place, _ in batch)
            yield batch

    monkeypatch.setattr(Generator, "generate_batches", watch)
    return seen


@pytest.fixture
def no_model(monkeypatch):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava.infer.checkpoint.load_model_and_processor", loaded)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_answer_files(checkpoints, world, family, capsys, monkeypatch):
    words = command(checkpoints[family], world)
    capsys.readouterr()  # making a checkpoint may print
    monkeypatch.setenv(VARIABLE, str(world / "progress.json"))
    assert main(words) == 0
    noted = read(world / "progress.json")
    assert (noted["done"], noted["total"]) == (12, 12)
    names = [f"{stem}_tiny-{family}.json" for stem in ("cap_val-5", "vqa_val-7")]
    assert listing(world / "out") == sorted([*names, *(f"{name}.key" for name in names)])
    assert sorted(capsys.readouterr().out.split()) == [str(world / "out" / name) for name in names]

    model, processor = load_model_and_processor(checkpoints[family], dtype=torch.float32)
    generator = Generator(model, processor, settings=GenerationSettings(max_new_tokens=6, batch_size=1))
    for stem in ("cap_val-5", "vqa_val-7"):
        questions = run.read_questions(world / f"{stem}.json", world / "images")
        wanted = dict(generator.generate(questions.requests))
        answered = read(world / "out" / f"{stem}_tiny-{family}.json")
        assert len(answered) == len(questions.records)
        for place, (record, question) in enumerate(zip(answered, questions.records, strict=True)):
            assert record["conversations"][1].pop("generative_value") == wanted[place]
            assert record["conversations"][1].pop("generator") == f"tiny-{family}"
            assert record == question


def test_a_finished_file_is_reused_and_one_of_others_refused(checkpoints, world, capsys, no_model, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("llava.infer.checkpoint.load_model_and_processor", load_model_and_processor)
        assert main(command(checkpoints["qwen2_vl"], world)) == 0
    before = {file: file.stat().st_mtime_ns for file in (world / "out").iterdir()}
    assert main(command(checkpoints["qwen2_vl"], world, "--batch-size", "2")) == 0
    assert {file: file.stat().st_mtime_ns for file in (world / "out").iterdir()} == before

    def refused(*more):
        capsys.readouterr()
        assert main(command(checkpoints["qwen2_vl"], world, *more)) == 2
        said = capsys.readouterr()
        assert "delete it, or choose another" in said.err
        assert said.out == ""
        assert {file: file.stat().st_mtime_ns for file in (world / "out").iterdir()} == before
        return said.err

    assert "max_new_tokens (6 there, 7 here)" in refused("--max_new_tokens", "7")
    write(world / "vqa_val-7.json", read(world / "vqa_val-7.json")[::-1])
    assert "differs in questions" in refused()
    other = shutil.copytree(checkpoints["llava"], world / "other" / "tiny-qwen2_vl")
    capsys.readouterr()
    assert main(command(other, world, files=["cap_val-5.json"])) == 2
    assert "differs in model_files" in capsys.readouterr().err


def test_answers_from_before_the_tokenizer_was_mended_are_not_current(checkpoints, world, capsys):
    """The same files gave other tokens then. Tokenizers that were never mended leave no mark in the key."""
    for family in ("llava", "qwen2_vl"):
        assert main(command(checkpoints[family], world, files=["cap_val-5.json"])) == 0
    keys = {family: world / "out" / f"cap_val-5_tiny-{family}.json.key" for family in ("llava", "qwen2_vl")}
    assert "tokenizer" not in read(keys["qwen2_vl"])
    key = read(keys["llava"])
    del key["tokenizer"]
    write(keys["llava"], key)
    assert main(command(checkpoints["llava"], world, files=["cap_val-5.json"])) == 2
    assert "differs in tokenizer (null there" in capsys.readouterr().err


def test_a_model_is_known_by_its_weights_not_by_its_place(checkpoints, tmp_path):
    def identity(folder):
        return Checkpoint(str(folder), None, "auto", "cpu").identity

    moved = shutil.copytree(checkpoints["qwen2_vl"], tmp_path / "moved")
    assert identity(moved) == identity(checkpoints["qwen2_vl"])
    (moved / "trainer_state.json").write_text("{}")
    assert identity(moved) == identity(checkpoints["qwen2_vl"])
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert identity(moved) != identity(checkpoints["qwen2_vl"])


def test_a_stopped_run_goes_on_without_answering_anything_twice(checkpoints, world, asked, monkeypatch):
    wanted = world / "whole"
    assert main(command(checkpoints["qwen2_vl"], world, out="whole")) == 0
    asked.clear()
    add, batches = Journal.add, []

    def stopping(self, answers):
        add(self, answers)
        batches.append(answers)
        if len(batches) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            main(command(checkpoints["qwen2_vl"], world, "--batch-size", "2"))
    assert len(asked) == 4
    assert listing(world / "out") == ["vqa_val-7_tiny-qwen2_vl.json.part-0-of-1"]
    assert main(command(checkpoints["qwen2_vl"], world)) == 0
    assert len(asked) == 12
    assert len(set(asked[:7])) == 7
    assert listing(world / "out") == listing(wanted)
    for name in listing(wanted):
        assert read(world / "out" / name) == read(wanted / name)


def test_chunks_join_by_themselves(checkpoints, world, asked):
    assert main(command(checkpoints["qwen2_vl"], world, out="whole")) == 0
    asked.clear()
    for chunk in (2, 0, 1):
        finals = [name for name in listing(world / "out") if name.endswith(".json")]
        assert finals == []
        assert main(command(checkpoints["qwen2_vl"], world, "--num-chunks", "3", "--chunk-idx", str(chunk))) == 0
    assert len(asked) == 12
    assert listing(world / "out") == listing(world / "whole")
    for name in listing(world / "whole"):
        assert read(world / "out" / name) == read(world / "whole" / name)


def test_ranks_share_the_questions_and_may_be_fewer_than_files_hold(checkpoints, world, asked, monkeypatch):
    assert main(command(checkpoints["qwen2_vl"], world, out="whole")) == 0
    asked.clear()
    monkeypatch.setenv("WORLD_SIZE", "6")
    for rank in range(6):
        monkeypatch.setenv("RANK", str(rank))
        assert main(command(checkpoints["qwen2_vl"], world)) == 0
    assert len(asked) == 12
    for name in listing(world / "whole"):
        assert read(world / "out" / name) == read(world / "whole" / name)


def test_a_resumed_run_may_have_other_workers(checkpoints, world, asked):
    first = command(checkpoints["qwen2_vl"], world, "--num-chunks", "2", "--chunk-idx", "1")
    assert main(first) == 0
    assert main(command(checkpoints["qwen2_vl"], world)) == 0
    assert len(asked) == 12
    assert all(not name.count(".part-") for name in listing(world / "out"))


def test_options_of_both_spellings_names_templates_and_first_samples(checkpoints, world):
    words = [
        *("--model_path", str(checkpoints["llava"]), "--model_name", "plus_mini:vqa", "--conv_mode", "v0"),
        *("--image_folder", str(world / "images"), "--question_file", str(world / "vqa_val-7.json")),
        *("--answers_folder", str(world / "out"), "--max-new-tokens", "3", "--max_samples", "4", "--num-beams", "2"),
        *("--batch_size", "3", "--num_workers", "0", "--dtype", "bfloat16", "--device", "cpu", "--top-p", "0.9"),
    ]
    assert main(words) == 0
    answered = read(world / "out" / "vqa_val-7_plus_mini-vqa.json")
    assert [record["conversations"][1]["generator"] for record in answered] == ["plus_mini:vqa"] * 4
    key = read(world / "out" / "vqa_val-7_plus_mini-vqa.json.key")
    assert (key["template"], key["dtype"], key["num_beams"]) == ("v0", "bfloat16", 2)


def test_bad_input_is_named_before_the_model_is_loaded(checkpoints, world, capsys, no_model):
    def refused(*words):
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as error:
            code = error.code
        assert code == 2
        assert listing(world / "out") == []
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.err

    base = command(checkpoints["qwen2_vl"], world)
    os.remove(world / "images" / "4.png")
    assert "vqa_val-7.json, record vqa4 (no. 4): there is no file" in refused(*base)
    shutil.copy(world / "images" / "3.png", world / "images" / "4.png")
    records = read(world / "cap_val-5.json")
    records[3]["conversations"] *= 2
    write(world / "cap_val-5.json", records)
    assert "record cap3 (no. 3)" in refused(*base)
    records[3]["conversations"] = [{"from": "human", "value": "word " * 3000}, {"from": "gpt", "value": "x"}]
    write(world / "cap_val-5.json", records)
    assert "record cap3 (no. 3): the prompt takes" in refused(*base)
    one = command(checkpoints["qwen2_vl"], world, files=["vqa_val-7.json"])
    assert "unknown conversation template 'v9'" in refused(*one, "--conv-mode", "v9")
    assert "--chunk-idx must lie in 0 to 1" in refused(*one, "--num-chunks", "2", "--chunk-idx", "2")
    assert "--batch-size must be" in refused(*one, "--batch-size", "many")
    assert "must be at least 1" in refused(*one, "--max_new_tokens", "0")
    assert "temperature" in refused(*one, "--temperature", "-1")
    assert "nothing" in refused(*command(world / "nothing", world))
    assert "config.json" in refused(*command(world / "images", world))
    twice = command(checkpoints["qwen2_vl"], world, files=["vqa_val-7.json", "vqa_val-7.json"])
    assert "2 question files are named vqa_val-7" in refused(*twice)


def test_a_broken_checkpoint_is_named(checkpoints, world, capsys):
    broken = shutil.copytree(checkpoints["qwen2_vl"], world / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(command(broken, world)) == 2
    said = capsys.readouterr().err
    assert str(broken) in said
    assert "Traceback" not in said
    assert listing(world / "out") == []


@pytest.mark.slow
def test_torchrun_and_a_killed_run(checkpoints, world):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "inference_visatb.py")
    alone = [sys.executable, script, *command(checkpoints["qwen2_vl"], world, "--batch-size", "1", out="killed")]
    with subprocess.Popen(alone, env=environment, cwd=world) as process:
        journal = world / "killed" / "vqa_val-7_tiny-qwen2_vl.json.part-0-of-1"
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    answered = journal.read_bytes().count(b"\n") - 1
    assert 0 < answered < 7
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29777", script]
    done = subprocess.run(
        [*two, *command(checkpoints["qwen2_vl"], world, out="killed")], env=environment, cwd=world, check=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "answers are there already" in done.stderr
    subprocess.run([*two, *command(checkpoints["qwen2_vl"], world)], env=environment, cwd=world, check=True)
    assert main(command(checkpoints["qwen2_vl"], world, out="whole")) == 0
    for out in ("killed", "out"):
        assert listing(world / out) == listing(world / "whole")
        for name in listing(world / "whole"):
            assert read(world / out / name) == read(world / "whole" / name)
