import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare import publishers
from tests.prepare.checks import check_training_files, load, pairs, run
from visatb.experiment.read import load_experiment
from visatb.prepare.m3it import FOLDERS, M3IT

# As on the hub; the kinds are our choice.
NAMES = [
    *("coco", "textcap", "image-paragraph-captioning"),
    *("coco-goi", "coco-text", "imagenet", "coco-itm", "snli-ve", "mocheg"),
    *("shapes", "ocr-vqa", "gqa", "science-qa", "clevr", "nlvr", "visual-dialog", "multi30k"),
]
TESTED = {"coco", "image-paragraph-captioning", "snli-ve"}
PARQUET = {"coco", "textcap", "gqa"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    kinds = {name: f"{'parquet' * (name in PARQUET)} {'tested' * (name in TESTED)}" for name in NAMES}
    return publishers.m3it(tmp_path_factory.mktemp("m3it") / "source", kinds)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "m3it"
    assert run("m3it", source, output) == 0
    return output


def test_counts(prepared):
    for name, task in zip(NAMES, FOLDERS, strict=True):
        counts = [len(load(prepared, task, split)) for split in ("train", "val", "test")]
        assert counts == ([15, 7, 4] if name in TESTED else [15, 3, 4]), task  # without a test set, 7 are halved


def test_halves_part_the_validation_set(prepared):
    ids = [record["id"] for split in ("val", "test") for record in load(prepared, "CLEVR", split)]
    assert sorted(ids) == [f"validation-{n}" for n in range(7)]
    assert ids != sorted(ids)


def test_records_and_images(prepared):
    check_training_files(prepared, M3IT.tasks)
    for task, name in (("MS-COCO", "coco"), ("CLEVR", "clevr")):
        records = load(prepared, task, "train")
        assert pairs(records[0]) == [(f"<image>\nLook at the picture for {name}.", "It is 0 of train_0.")]
        assert pairs(records[1])[0][0] == f"<image>\nLook at the picture for {name}.\nWhat is 1?"
        assert records[0]["image"] == records[1]["image"] != records[2]["image"]  # equal content is stored once
        content = (prepared / "images" / records[0]["image"]).read_bytes()
        entry = next(publishers.m3it_entries(name, "train_0", 1))
        assert content == base64.b64decode(entry["image_base64_str"][0])
    rows = json.loads((prepared / "prepared.json").read_text())["summary"]
    assert (rows[0]["samples"], rows[0]["images"], rows[0]["images_missing"]) == (15, 6, 0)


def test_the_experiment_file_runs_on_what_was_prepared(prepared):
    experiment = load_experiment(prepared / "m3it.yaml")
    files = [file for task in experiment.tasks.values() for file in [*task.train, task.val, task.test]]
    assert sorted(files) == sorted(str(path) for path in prepared.glob("*_*-*.json"))
    assert experiment.image_folder == str(prepared / "images")


def only_task(tmp_path, entries, suffix="jsonl"):
    folder = tmp_path / "source/gqa"
    for split in ("train", "val"):
        if suffix == "parquet":
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(entries), folder / f"{split}.parquet")
        else:
            publishers.put_lines(folder / f"{split}.{suffix}", entries)
    return tmp_path / "source"


def entry(images, outputs="yes", **rest):
    return {"instruction": "Look.", "inputs": "Well?", "image_base64_str": images, "outputs": outputs, **rest}


def encoded(shade, kind="PNG"):
    return base64.b64encode(publishers.picture_bytes(shade, kind)).decode()


def test_several_images_one_or_none(tmp_path):
    entries = [entry([encoded(1), encoded(2, "JPEG")]), entry([]), entry(encoded(3))]
    source = only_task(tmp_path, entries)
    assert run("m3it", source, tmp_path / "out", "--tasks", "GQA") == 0
    two, none, one = load(tmp_path / "out", "GQA", "train")
    assert pairs(two)[0][0] == "<image>\n<image>\nLook.\nWell?"
    assert [image.rpartition(".")[2] for image in two["image"]] == ["png", "jpg"]
    assert "image" not in none
    assert pairs(none)[0][0] == "Look.\nWell?"
    assert isinstance(one["image"], str)
    check_training_files(tmp_path / "out", ("GQA",))


def test_images_as_bytes_in_parquet(tmp_path):
    entries = [
        {"instruction": "Look.", "inputs": "", "outputs": "yes", "image": {"bytes": publishers.picture_bytes(n)}}
        for n in range(3)
    ]
    source = only_task(tmp_path, entries, "parquet")
    assert run("m3it", source, tmp_path / "out", "--tasks", "GQA") == 0
    check_training_files(tmp_path / "out", ("GQA",))


def test_unreadable_images_are_left_out_and_counted(tmp_path, caplog):
    broken = [entry(["no image"]), entry([encoded(1)[:40]]), entry([base64.b64encode(b"text").decode()])]
    source = only_task(tmp_path, [*broken, entry([encoded(1)]), entry([encoded(2)]), entry([encoded(1)], outputs=" ")])
    assert run("m3it", source, tmp_path / "out", "--tasks", "GQA") == 0
    assert len(load(tmp_path / "out", "GQA", "train")) == 2
    row = json.loads((tmp_path / "out/prepared.json").read_text())["summary"][0]
    assert row["images_missing"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"instruction": "Look.", "inp', "cut off"),
        ('{"question": "Look."}\n', "not a record of M³IT"),
        ("[1, 2]\n", "not a record"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message, capsys):
    source = only_task(tmp_path, [entry([encoded(1)])])
    (source / "gqa/train.jsonl").write_text(content)
    assert run("m3it", source, tmp_path / "out", "--tasks", "GQA") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "train" in error
    assert not (tmp_path / "out").exists()


def test_a_broken_parquet_file_is_named(tmp_path, capsys):
    source = only_task(tmp_path, [entry([encoded(1)])])
    (source / "gqa/train.jsonl").rename(source / "gqa/train.parquet")
    assert run("m3it", source, tmp_path / "out", "--tasks", "GQA") == 2
    assert "train.parquet cannot be read as parquet" in capsys.readouterr().err


def test_missing_data_sets_are_named(source, tmp_path, capsys):
    assert run("m3it", source / "data/vqa", tmp_path / "out") == 2
    assert "no train and no val file of MS-COCO (a folder coco" in capsys.readouterr().err
