import json
import pickle
import re
from collections import Counter

import pytest

from tests.prepare import checks, publishers
from tests.prepare.checks import load, pairs
from visatb.prepare.academic import Academic
from visatb.prepare.refcoco import box_text, read_plain_pickle, segments
from visatb.prepare.source import PrepareError

TASKS = Academic.tasks
SHORT = "Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return publishers.academic(tmp_path_factory.mktemp("academic") / "source")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return publishers.word_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def run(source, output, *arguments):
    return checks.run("academic", source, output, *arguments)


@pytest.fixture(scope="module")
def prepared(source, tokenizer, tmp_path_factory):
    """All tasks; the scale makes 2,000 of ShareGPT4V to 5, 20,000 of validation to 50, and 80,000 books to 200."""
    output = tmp_path_factory.mktemp("prepared") / "academic"
    assert run(source, output, "--tokenizer", tokenizer, "--scale", 0.0025) == 0
    return output


def only(source, output, *tasks, arguments=()):
    assert run(source, output, "--tasks", *tasks, *arguments) == 0
    return output


def test_counts(prepared):
    """What the rules make of the miniature folders, by hand."""
    counts = {}
    for task in TASKS:
        for split in ("train", "val", "test"):
            if list(prepared.glob(f"{task}_{split}-*")):
                counts[task, split] = len(load(prepared, task, split))
    assert counts == {
        ("ShareGPT4V", "train"): 20,
        ("ShareGPT4V", "val"): 5,
        ("ShareGPT4V", "test"): 5,
        ("RefCOCO-caption", "train"): 3 + 1,  # 24 turns and 9 turns, fewer than 10 in each
        ("RefCOCO-caption", "val"): 2,  # a region with its references
        ("RefCOCO-caption", "test"): 2,
        ("RefCOCO-bbox", "train"): 3 + 1,
        ("RefCOCO-bbox", "val"): 6,  # an expression
        ("RefCOCO-bbox", "test"): 6,
        ("VQAv2", "train"): 5,
        ("VQAv2", "val"): 12,
        ("VQAv2", "test"): 6,
        ("GQA", "train"): 4,
        ("GQA", "val"): 10,
        ("GQA", "test"): 5,
        ("ChartQA", "train"): 2,
        ("ChartQA", "val"): 2,
        ("ChartQA", "test"): 4,
        ("OCRVQA", "train"): 20,
        ("OCRVQA", "val"): 8,
        ("OCRVQA", "test"): 6,
        ("ShareGPT", "train"): 4,
    }


def test_every_record_is_in_form_and_its_image_is_there(prepared):
    missing = []
    for file in prepared.glob("*_*-*.json"):
        names = []
        for record in json.loads(file.read_text()):
            names.append(record["id"])
            assert record["task"] == file.name.split("_")[0] or record["task"] in file.name
            marks = sum(question.count("<image>") for question, _ in pairs(record))
            assert marks == ("image" in record)
            if "image" in record and not (prepared / "images" / record["image"]).is_file():
                missing.append(record["image"])
        assert len(set(names)) == len(names), file
    assert missing == ["coco/train2017/000000000929.jpg"]


def test_the_summary_counts_what_is_missing(prepared):
    rows = json.loads((prepared / "prepared.json").read_text())["summary"]
    assert sum(row["images_missing"] for row in rows) == 1
    row = next(row for row in rows if (row["task"], row["split"]) == ("VQAv2", "train"))
    assert (row["samples"], row["turns"], row["images"], row["mean_answer_words"]) == (5, 20, 5, 2.0)
    assert [row["task"] for row in rows] == sorted((row["task"] for row in rows), key=TASKS.index)


def test_questions_of_an_image_are_one_conversation_with_one_instruction(prepared):
    for task, turns in (("VQAv2", 4), ("GQA", 3), ("OCRVQA", 2)):
        records = load(prepared, task, "train")
        assert len({record["image"] for record in records}) == len(records)
        for record in records:
            questions = [question for question, _ in pairs(record)]
            assert len(questions) == turns
            assert questions[0].startswith("<image>\n")
            assert questions[0].endswith(f"?\n{SHORT}")
            assert all(SHORT not in question for question in questions[1:])


def test_answers_of_vqav2_belong_to_their_questions(prepared):
    for record in load(prepared, "VQAv2", "train"):
        image = int(re.search(r"_(\d{12})\.jpg", record["image"])[1])
        assert [answer for _, answer in pairs(record)] == [f"answer {image * 1000 + n}" for n in range(4)]
    for record in load(prepared, "VQAv2", "val"):
        ((question, answer),) = pairs(record)
        assert answer == f"answer {record['id']}"
        assert question == f"<image>\nWhat is {int(record['id']) % 1000}?\n{SHORT}"
    assert {answer for record in load(prepared, "VQAv2", "test") for _, answer in pairs(record)} == {""}


def test_chartqa_merges_both_kinds_of_questions(prepared):
    records = {record["image"]: pairs(record) for record in load(prepared, "ChartQA", "train")}
    folder = "chartqa/ChartQA Dataset/train/png"
    first = [(f"<image>\nhuman 0?\n{SHORT}", "0.5"), ("human 1?", "1.5"), ("augmented 0?", "0.5")]
    assert records == {
        f"{folder}/c0.png": first,
        f"{folder}/c1.png": [(f"<image>\naugmented 1?\n{SHORT}", "1.5"), ("augmented 2?", "2.5")],
    }


def test_covers_of_ocrvqa_are_found_under_either_ending(prepared):
    images = {record["image"] for record in load(prepared, "OCRVQA", "train")}
    assert "ocr_vqa/images/0000000.gif" in images
    assert "ocr_vqa/images/0000001.jpg" in images


def test_refcoco(prepared):
    caption, bbox = load(prepared, "RefCOCO-caption", "train"), load(prepared, "RefCOCO-bbox", "train")
    assert [len(pairs(record)) for record in caption] == [8, 8, 8, 9] == [len(pairs(record)) for record in bbox]
    # region 0: x 10, y 20, 50 × 30 in 640 × 480, padded above and below by 80 to 640
    box = "[0.02, 0.16, 0.09, 0.20]"
    assert pairs(caption[0])[0] == (f"<image>\nProvide a short description for this region: {box}.", "thing 0 named 0")
    asked = "Provide the bounding box coordinate of the region this sentence describes: thing 0 named 0."
    assert pairs(bbox[0])[0] == (f"<image>\n{asked}", box)
    assert [pairs(record)[0][1] for record in load(prepared, "RefCOCO-caption", "test")] == [
        [f"thing {number} named {n}" for n in range(3)] for number in (13, 14)
    ]  # testB, not testA
    assert all(len(pairs(record)) == 1 for record in load(prepared, "RefCOCO-bbox", "test"))


@pytest.mark.parametrize(
    ("size", "frame", "text"),
    [
        ((100, 100), "square", "[0.10, 0.20, 0.40, 0.60]"),
        ((200, 100), "square", "[0.05, 0.35, 0.20, 0.55]"),  # 50 above
        ((100, 200), "square", "[0.30, 0.10, 0.45, 0.30]"),  # 50 to the left
        ((200, 100), "image", "[0.05, 0.20, 0.20, 0.60]"),
    ],
)
def test_boxes(size, frame, text):
    assert box_text([10, 20, 30, 40], *size, frame) == text


@pytest.mark.parametrize("turns", [1, 9, 10, 18, 19, 100])
def test_segments_are_few_and_short(turns):
    parts = segments(list(range(turns)))
    assert [value for part in parts for value in part] == list(range(turns))
    assert max(map(len, parts)) < 10
    assert len(parts) == -(-turns // 9)


def test_sharegpt(prepared):
    records = {record["id"]: pairs(record) for record in load(prepared, "ShareGPT", "train")}
    assert records["plain"] == [("hello", "good day")]
    assert records["led"] == [("first", "w2")]
    assert set(records) == {"plain", "led", "long", "one"}


def test_sharegpt_is_cut_at_2048_tokens(prepared, tokenizer):
    from transformers import AutoTokenizer

    from llava.conversation import conv_templates

    words = AutoTokenizer.from_pretrained(tokenizer)
    lengths = {}
    for record in load(prepared, "ShareGPT", "train"):
        conversation = conv_templates["v1"].copy()
        for turn in record["conversations"]:
            conversation.append_message(conversation.roles[turn["from"] == "gpt"], turn["value"])
        lengths[record["id"]] = 1 + len(words(conversation.get_prompt(), add_special_tokens=False).input_ids)
    assert max(lengths.values()) <= 2048
    records = {record["id"]: record for record in load(prepared, "ShareGPT", "train")}
    assert len(pairs(records["long"])) == 4  # 2,039 tokens; a fifth round has 504
    assert lengths["one"] > 2040


def test_scale_sets_the_sampled_sizes(source, tmp_path):
    output = only(source, tmp_path / "out", "OCRVQA", "VQAv2", "GQA", arguments=("--scale", 0.0001))
    assert len(load(output, "OCRVQA", "train")) == 8
    assert len(load(output, "OCRVQA", "test")) == 6
    assert [len(load(output, task, "val")) for task in ("OCRVQA", "VQAv2", "GQA")] == [2, 2, 2]


def test_samples_depend_on_the_seed_alone(source, tmp_path):
    chosen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = only(source, tmp_path / name, "OCRVQA", "ShareGPT4V", arguments=("--scale", 0.0001, "--seed", seed))
        chosen.append([load(output, "OCRVQA", "train"), load(output, "ShareGPT4V", "val")])
    assert chosen[0] == chosen[1] != chosen[2]


def test_splits_of_sharegpt4v_part_it(source, tmp_path):
    output = only(source, tmp_path / "out", "ShareGPT4V", arguments=("--scale", 0.0025))
    ids = [record["id"] for split in ("train", "val", "test") for record in load(output, "ShareGPT4V", split)]
    assert sorted(ids) == [f"{n:012d}" for n in range(30)]


def test_missing_images_can_be_left_out(source, tmp_path):
    output = only(source, tmp_path / "out", "ShareGPT4V", arguments=("--scale", 0.0025, "--missing", "drop"))
    assert Counter(len(load(output, "ShareGPT4V", split)) for split in ("train", "val", "test")) == {19: 1, 5: 2}


def test_the_experiment_file_runs_on_what_was_prepared(prepared):
    from visatb.experiment.read import load_experiment

    experiment = load_experiment(prepared / "academic.yaml")
    files = [file for task in experiment.tasks.values() for file in [*task.train, task.val, task.test] if file]
    assert len(files) == 22
    assert sorted(files) == sorted(str(path) for path in prepared.glob("*_*-*.json"))
    assert experiment.image_folder == str(prepared / "images")
    assert (experiment.training["deepspeed"]).endswith("scripts_visatb/zero3.json")


def test_coco_images_are_found_under_their_2017_names(tmp_path):
    source = tmp_path / "source"
    publishers.vqav2(source)
    old = source / "coco/train2014"
    for image in old.iterdir():
        publishers.picture(source / f"coco/train2017/{int(image.stem.split('_')[-1]):012d}.jpg")
        image.unlink()
    output = only(source, tmp_path / "out", "VQAv2")
    assert {record["image"].split("/")[1] for record in load(output, "VQAv2", "train")} == {"train2017"}


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("content", [Evil(), [Evil()], {"a": {1, 2}, "b": complex(1, 2)}, re.compile("x")])
def test_pickles_that_name_code_are_refused(content, tmp_path, capsys):
    (tmp_path / "refs.p").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(PrepareError, match="only plain containers"):
        read_plain_pickle(tmp_path / "refs.p")
    assert "code ran" not in capsys.readouterr().out


def test_pickles_of_python_2_are_read(tmp_path):
    content = b"(lp0\n(dp1\nS'sent'\np2\nVd\xe9j\xe0\np3\nsS'ref_id'\np4\nI7\nsS'box'\np5\n(lp6\nF1.5\nasa."
    (tmp_path / "refs.p").write_bytes(content)
    assert read_plain_pickle(tmp_path / "refs.p") == [{"sent": "déjà", "ref_id": 7, "box": [1.5]}]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2, 3])[:-2]])
def test_broken_pickles_are_named(content, tmp_path):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(PrepareError, match=r"refs\.p"):
        read_plain_pickle(tmp_path / "refs.p")


def remove_answers(source):
    (source / "vqav2/v2_mscoco_train2014_annotations.json").unlink()


def cut_off(source):
    path = source / "vqav2/v2_mscoco_train2014_annotations.json"
    path.write_bytes(path.read_bytes()[:400])


def lose_one(source):
    path = source / "vqav2/v2_mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    del content["annotations"][3]
    path.write_text(json.dumps(content))


def rename_field(source):
    path = source / "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
    path.write_text(path.read_text().replace('"image_id"', '"imageId"'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_answers, "v2_mscoco_train2014_annotations.json"),
        (cut_off, "cut off or not valid JSON"),
        (lose_one, "do not fit together at question_id"),
        (rename_field, "no `image_id`"),
    ],
)
def test_bad_sources_are_named_and_leave_nothing(spoil, message, tmp_path, capsys):
    source = tmp_path / "source"
    publishers.vqav2(source)
    spoil(source)
    assert run(source, tmp_path / "out", "--tasks", "VQAv2") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "VQA"), "unknown task VQA"),
        (("--tasks", "ShareGPT"), "--tokenizer"),
        (("--tasks", "ShareGPT4V"), "--scale"),
        (("--tasks", "ShareGPT", "--tokenizer", "/nowhere/at/all"), "--tokenizer /nowhere/at/all"),
        (("--tasks", "GQA", "--scale", "0"), "--scale must be positive"),
    ],
)
def test_bad_arguments(source, tmp_path, capsys, arguments, message):
    assert run(source, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_no_such_source(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
