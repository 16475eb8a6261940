"""`visatb validate`: what is found before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import tiny_llava
from tests.workflow.world import write_experiment
from visatb.commands.validate import main


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("base") / "model")


def spoil(file: Path, change) -> None:
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))


def run(folder: Path, base: Path, capsys, tasks=None, **settings) -> tuple[int, str]:
    settings = {"training": {"model_max_length": 128}, **settings}
    path = folder / "experiment.yaml"
    if not path.exists():
        path = write_experiment(folder, tasks or {"a": {}, "b": {}}, model={"path": str(base)}, **settings)
    code = main([str(path), "--workdir", str(folder / "work")])
    captured = capsys.readouterr()
    return code, captured.err if code else captured.out


def test_sound_experiment(tmp_path, base, capsys):
    code, text = run(tmp_path, base, capsys)
    assert (code, "fit to run" in text) == (0, True)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("a_train-16.json", lambda records: records[3].update(image="lost.png"), ["a-train-3", "lost.png"]),
        ("b_train-16.json", lambda records: records[5].update(task="other"), ["b-train-5", "other"]),
        ("a_val-12.json", lambda records: records[2]["conversations"].pop(), ["a-val-2", "pair"]),
        ("b_test-10.json", lambda records: records[1]["conversations"][1].update(value=""), ["b-test-1", "truth"]),
        ("b_test-10.json", lambda records: records[1].update(image="gone.png"), ["b-test-1", "gone.png"]),
    ],
)
def test_bad_records_are_named(tmp_path, base, capsys, file, change, words):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    spoil(tmp_path / file, change)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    for word in words:
        assert word in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training": {"learnin_rate": 1}}, ["learnin_rate", "did you mean learning_rate"]),
        ({"training": {"bits": 5}}, ["bits"]),
        ({"training": {"deepspeed": "no.json"}}, ["deepspeed", "does not exist"]),
        ({"model": {"path": "/nowhere/at/all"}}, ["/nowhere/at/all"]),
        ({"model": {"path": "BASE", "family": "qwen2_vl"}}, ["model.family", "llava"]),
        ({"launcher": {"processes": 3}}, ["global_batch_size", "3 processes"]),
        ({"image_folder": "pictures"}, ["image_folder", "no folder"]),
    ],
)
def test_bad_settings_are_named(tmp_path, base, capsys, settings, words):
    model = settings.pop("model", {"path": "BASE"})
    model = {**model, "path": str(base) if model["path"] == "BASE" else model["path"]}
    write_experiment(tmp_path, {"a": {}, "b": {}}, model=model, **settings)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    for word in words:
        assert word in text


def test_truth_that_does_not_fit_its_metric(tmp_path, base, capsys):
    code, text = run(tmp_path, base, capsys, {"a": {"metric": "iou"}, "b": {}})
    assert code == 2
    assert "a_val-12.json" in text
    assert "no box" in text


def copy_records(folder: Path, source: str, target: str, number: int) -> None:
    """Put `number` of a file's records before those of another, in place of as many."""
    records = json.loads((folder / source).read_text())[:number]
    (folder / target).write_text(json.dumps(records + json.loads((folder / target).read_text())[number:]))


def test_validation_data_that_are_training_data(tmp_path, base, capsys):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    copy_records(tmp_path, "a_train-16.json", "a_val-12.json", 12)
    copy_records(tmp_path, "b_train-16.json", "a_test-10.json", 10)  # another task's training data are trained on, too
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    assert "a_val-12.json: task a, val: all 12 questions are training questions" in text
    assert "a_test-10.json: task a, test: all 10 questions" in text


def test_shared_questions_and_images_are_counted(tmp_path, base, capsys, caplog):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    copy_records(tmp_path, "a_train-16.json", "a_val-12.json", 3)
    image = json.loads((tmp_path / "a_train-16.json").read_text())[0]["image"]

    def show_training_image(records):
        for record in records[:4]:
            record["image"] = image
            record["conversations"][0]["value"] = "<image>\nWhich colour?"

    spoil(tmp_path / "b_test-10.json", show_training_image)
    code, text = run(tmp_path, base, capsys)
    assert (code, "2 warnings above" in text) == (0, True)
    assert "a, val: 3 of 12 questions are training questions, too" in caplog.text
    assert "b, test: 4 of 10 questions are about images that training data hold" in caplog.text


def test_copies_of_images_are_found_by_content(tmp_path, base, capsys, caplog):
    """Each of task a's records has an image of its own; validation holds copies of three of them under other names."""
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    images = tmp_path / "images"

    def own_image(records):
        for number, record in enumerate(records):
            record["image"] = f"train-{number}.bmp"  # all of one size, larger than the block looked at first
            Image.new("RGB", (64, 64), (number, 5, 7)).save(images / record["image"])

    spoil(tmp_path / "a_train-16.json", own_image)
    records = json.loads((tmp_path / "a_train-16.json").read_text())

    def copied(questions):
        for question, record, text in zip(questions[:4], records, ("", "What is this? ", "", ""), strict=False):
            question["image"] = record["image"].replace("train", "val")
            shutil.copy(images / record["image"], images / question["image"])
            question["conversations"][0]["value"] = text + record["conversations"][0]["value"]
        pixels = bytearray((images / "val-3.bmp").read_bytes())
        pixels[-1] ^= 1  # not quite a copy, and the difference is far from the middle
        (images / "val-3.bmp").write_bytes(pixels)

    spoil(tmp_path / "a_val-12.json", copied)
    code, _ = run(tmp_path, base, capsys)
    assert code == 0
    assert "a, val: 2 of 12 questions are training questions, too" in caplog.text
    assert "a, val: 3 of 12 questions are about images that training data hold" in caplog.text
    assert "train-0.bmp and val-0.bmp are one image under different names" in caplog.text


def break_image(file: Path) -> None:
    """Spoil an image's data and leave its header and its end as they are."""
    content = bytearray(file.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 8] = bytes(8)
    file.write_bytes(content)


def test_broken_data_behind_a_sound_header(tmp_path, base, capsys):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    images = tmp_path / "images"
    for file, name in (("a_train-16.json", "one.png"), ("b_val-12.json", "two.png")):
        shutil.copy(images / "red-train.png", images / name)
        spoil(tmp_path / file, lambda records, name=name: records[2].update(image=name))
    code, text = run(tmp_path, base, capsys)
    total = len({path for file in tmp_path.glob("*_*.json") for path in images_of(file)})
    assert (code, f"all {total} images decoded" in text) == (0, True)
    for name in ("one.png", "two.png"):
        break_image(images / name)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    assert f"2 records with broken images (all {total} images decoded)" in text
    for words in ("a_train-16.json, record a-train-2 (no. 2): unreadable_image: ", "one.png"):
        assert words in text
    for words in ("b_val-12.json, record b-val-2 (no. 2): unreadable_image: ", "two.png"):
        assert words in text


def images_of(file: Path) -> list[str]:
    return [record["image"] for record in json.loads(file.read_text())]


def test_a_seeded_choice_of_images_is_decoded(tmp_path, base, capsys, monkeypatch):
    monkeypatch.setattr("visatb.commands.validate.AT_MOST", 3)
    code, text = run(tmp_path, base, capsys)
    assert (code, "3 of 12 images decoded (--all_images: all of them)" in text) == (0, True)
    assert main([str(tmp_path / "experiment.yaml"), "--all_images"]) == 0
    assert "all 12 images decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": -1e-3}, "learning_rate must be above 0"),
        ({"weight_decay": -1}, "weight_decay must not be below 0"),
        ({"data_seed": 2**40}, "data_seed must be a whole number from 0"),
        ({"report_to": "neptune"}, "neptune is not installed"),
        ({"report_to": "wanbd"}, "unknown wanbd"),
    ],
)
def test_settings_that_cannot_come_out_right(tmp_path, base, capsys, training, words):
    code, text = run(tmp_path, base, capsys, training={"model_max_length": 128, **training})
    assert (code, words in text, "--" in text) == (2, True, False), text


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 2**32}, {"generation": {"temperature": float("inf")}}])
def test_seeds_and_numbers_out_of_range(tmp_path, base, capsys, settings):
    code, text = run(tmp_path, base, capsys, **settings)
    assert (code, next(iter(settings)) in text) == (2, True)


def test_one_record_and_one_question(tmp_path, base, capsys):
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    for file in ("a_train-16.json", "b_val-12.json"):
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text())[:1]))
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    assert "task a: 1 training records are too few" in text
    assert "b_val-12.json: one question says nothing" in text


def test_answers_that_the_tokenizer_does_not_know(tmp_path, capsys, caplog):
    base = Path(__file__).parents[2] / "examples" / "tiny" / "base"
    write_experiment(tmp_path, {"a": {}, "b": {}}, model={"path": str(base)}, training={"model_max_length": 128})
    known = "red"
    for task, count in (("a", 16), ("b", 5)):

        def spoil_answers(records, count=count):
            for number, record in enumerate(records):
                record["conversations"][0]["value"] = "<image>\nwhat colour is it?"
                record["conversations"][1]["value"] = "fjord" if number < count else known

        spoil(tmp_path / f"{task}_train-16.json", spoil_answers)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    assert "task a: the answers of 16 of 16 samples become unknown tokens (record a-train-0, say)" in text
    assert "task b: the answers of 5 of 16 samples become unknown tokens" in caplog.text


def test_all_kinds_of_fault_at_once(tmp_path, base, capsys):
    write_experiment(
        tmp_path, {"a": {}, "b": {"metric": "iou"}}, model={"path": str(base)}, training={"model_max_length": 128}
    )
    spoil(tmp_path / "a_train-16.json", lambda records: records[3].update(image="lost.png"))
    spoil(tmp_path / "a_test-10.json", lambda records: records[1].update(image="gone.png"))
    copy_records(tmp_path, "b_train-16.json", "b_test-10.json", 10)
    code, text = run(tmp_path, base, capsys)
    assert code == 2
    for words in ("lost.png", "gone.png", "no box", "b_test-10.json: task b, test: all 10"):
        assert words in text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"training": {"model_max_length": 99999}}, "training.model_max_length"),
        ({"overrides": {"finals": {"model_max_length": 99999}}}, "overrides.finals.model_max_length"),
    ],
)
def test_length_above_the_models_positions_is_named_by_its_key_and_line(tmp_path, base, capsys, settings, key):
    code, text = run(tmp_path, base, capsys, **settings)
    file = tmp_path / "experiment.yaml"
    line = next(number for number, line in enumerate(file.read_text().splitlines(), 1) if "99999" in line)
    assert code == 2
    assert f"{file}:{line}: {key}: 99999 exceeds the" in text
    assert "--" not in text


def test_default_length_above_the_models_positions(tmp_path, capsys):
    code, text = run(tmp_path, Path(__file__).parents[2] / "examples" / "tiny" / "base", capsys, training={})
    assert code == 2
    assert "training.model_max_length: 2048 exceeds the 512 positions" in text
    assert "model_max_length is not given: the default" in text
