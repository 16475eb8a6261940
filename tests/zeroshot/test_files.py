"""The forms in which files are published, LLaVA's eval.zip among them, and files that are broken."""

import base64
import json
import re
import shutil

import pytest

from llava.data.errors import DataError
from llava.eval.files import MissingDataError
from llava.eval.registry import BENCHMARKS
from llava.infer.prompts import PromptMaker
from llava.infer.questions import read_questions
from llava.model.family import family_of
from tests.zeroshot import mini
from tests.zeroshot.mini import dump

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def prompts(name, data, tmp_path):
    records = BENCHMARKS[name].questions(data, tmp_path / "unpacked").records
    return [record["conversations"][0]["value"] for record in records]


def test_textvqa_prompts_of_llava(tmp_path):
    mini.textvqa(tmp_path)
    made = prompts("textvqa", tmp_path, tmp_path)
    assert made[0] == (
        f"<image>\nWhat is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL, Single-Use\n{SHORT}"
    )
    (tmp_path / "textvqa" / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    rows = [
        {"question_id": "003a8a", "image": "003a8a.jpg", "text": text.removeprefix("<image>\n"), "category": "default"}
        for text in reversed(made)
    ]
    path = dump(tmp_path / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", rows)
    assert prompts("textvqa", tmp_path, tmp_path) == made[::-1]
    records = BENCHMARKS["textvqa"].questions(tmp_path, tmp_path).records
    assert records[1]["conversations"][1]["value"][0] == "dakota"

    dump(path, [{"question_id": "003a8a", "text": f"Who is it?\n{SHORT}"}])
    with pytest.raises(DataError, match="'who is it\\?', is not in"):
        prompts("textvqa", tmp_path, tmp_path)


def test_scienceqa_prompts_of_llava(tmp_path):
    mini.sqa(tmp_path)
    made = prompts("sqa", tmp_path, tmp_path)
    assert made[2] == (
        "<image>\nContext: People can use the engineering-design process.\nWhich of these could the test show?\n"
        "A. how steady it was\nB. whether it would swing\n"
        "Answer with the option's letter from the given choices directly."
    )
    # as published: question and options alone; the script that puts them adds the instruction
    names = ("4", "11", "12")
    bare = {n: p.removeprefix("<image>\n").removesuffix(f"\n{LETTER}") for n, p in zip(names, made, strict=True)}
    rows = [llava_sqa_row("12", f"<image>\n{bare['12']}"), llava_sqa_row("11", f"{bare['11']}\n<image>")]
    path = dump(tmp_path / "scienceqa" / "llava_test_CQM-A.json", [*rows, llava_sqa_row("4", bare["4"])])
    assert prompts("sqa", tmp_path, tmp_path) == made
    dump(path, [*rows, llava_sqa_row("4", f"{bare['4']}\n{LETTER}")])  # one that holds it already
    assert prompts("sqa", tmp_path, tmp_path) == made
    dump(path, rows)
    with pytest.raises(DataError, match="no question 4"):
        prompts("sqa", tmp_path, tmp_path)


def llava_sqa_row(name, text):
    return {"id": name, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "B"}]}


def test_vqav2_and_vizwiz_of_llava(tmp_path):
    mini.vqav2(tmp_path)
    mini.vizwiz(tmp_path)
    for name, split in (("vqav2", "test-dev2015"), ("vqav2", "test2015"), ("vizwiz", "")):
        old = tmp_path / name / ("test.json" if name == "vizwiz" else f"v2_OpenEnded_mscoco_{split}_questions.json")
        content = json.loads(old.read_text())
        rows = content if name == "vizwiz" else content["questions"]
        image = "COCO_test2015_000000262144.jpg"
        tail = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
        lines = [
            {
                "question_id": row.get("question_id", row.get("image")),
                "image": row.get("image", image),
                "text": row["question"] + (tail if name == "vizwiz" else f"\n{SHORT}"),
            }
            for row in rows
        ]
        before = BENCHMARKS[name].questions(tmp_path, tmp_path).records
        old.unlink()
        new = "llava_test.jsonl" if name == "vizwiz" else f"llava_vqav2_mscoco_{split}.jsonl"
        dump(tmp_path / name / new, lines)
        assert BENCHMARKS[name].questions(tmp_path, tmp_path).records == before


def test_mmbench_table(tmp_path):
    mini.mmbench(tmp_path)
    benchmark = BENCHMARKS["mmbench"]
    questions = benchmark.questions(tmp_path, tmp_path / "unpacked")
    first, copy, hinted = questions.records
    assert first["image"] == copy["image"]  # the copy's cell names the row that holds the image
    row = mini.mmbench_row(241, "", [], "")
    assert (questions.image_folder / first["image"]).read_bytes() == base64.b64decode(row["image"])
    assert hinted["conversations"][0]["value"].split("\n")[:6] == [
        "<image>",
        "Read",
        "this.",
        "Which is right?",
        "A. left\tone",
        'B. the "other"',
    ]
    assert list(hinted["options"]) == ["A", "B"]
    assert "image" not in hinted["row"]
    [chinese] = BENCHMARKS["mmbench_cn"].questions(tmp_path, tmp_path / "unpacked_cn").records
    assert (
        chinese["conversations"][0]["value"] == "<image>\n他是谁？\nA. 安\nB. 鲍勃\n请直接回答选项字母。"
    )  # no hint nan


def test_mmbench_cn_may_lie_in_its_own_folder(tmp_path):
    mini.mmbench(tmp_path)
    (tmp_path / "mmbench_cn").mkdir()
    shutil.move(tmp_path / "mmbench" / "mmbench_dev_cn_20231003.tsv", tmp_path / "mmbench_cn")
    assert len(prompts("mmbench_cn", tmp_path, tmp_path)) == 1


def test_mme_folders_of_both_kinds(tmp_path):
    mini.mme(tmp_path)
    records = BENCHMARKS["mme"].questions(tmp_path, tmp_path).records
    images = {record["category"]: record["image"] for record in records}
    assert images["artwork"] == "artwork/images/0002.jpg"
    assert images["OCR"] == "OCR/0002.png"
    assert [record["conversations"][1]["value"] for record in records] == ["yes", "no"] * 28
    assert records[0]["conversations"][0]["value"] == f"<image>\nIs this a existence?\n{SHORT}"


def test_mme_prompts_of_llava(tmp_path):
    mini.mme(tmp_path)
    text = tmp_path / "MME" / "MME_Benchmark_release_version" / "OCR" / "0001.txt"
    text.write_text("Is it B?  Please answer yes or no.\tNo\nIs it A? Please answer yes or no.\tYes\n")
    made = BENCHMARKS["mme"].questions(tmp_path, tmp_path).records
    by_id = {record["id"]: record["conversations"] for record in made}
    assert by_id["OCR/0001.png#1"][0]["value"] == f"<image>\nIs it B? \n{SHORT}"  # as LLaVA's file: the blank stays
    # in another order, suffixes included; only the question says which one it is
    rows = [
        {
            "question_id": record["image"],
            "image": record["image"],
            "text": record["conversations"][0]["value"].removeprefix("<image>\n"),
            "category": record["category"],
        }
        for record in reversed(made)
    ]
    rows[-1]["text"] = f"Is this a existence? Please answer yes or no.\n{SHORT}"
    path = dump(tmp_path / "MME" / "llava_mme.jsonl", rows)
    read = BENCHMARKS["mme"].questions(tmp_path, tmp_path).records
    assert read[0]["conversations"][0]["value"] == f"<image>\n{rows[-1]['text']}"  # verbatim
    assert read[1:] == made[1:]
    assert [t["value"] for t in by_id["OCR/0001.png#1"]][1:] == ["no"]
    dump(path, rows[1:])
    with pytest.raises(DataError, match=r"llava_mme.jsonl: does not ask 'Is this no code_reasoning\?'"):
        prompts("mme", tmp_path, tmp_path)
    dump(path, [*rows, rows[0] | {"text": f"Is it C?\n{SHORT}"}])
    with pytest.raises(DataError, match=r"asks 'Is it C\?' of code_reasoning/0002"):
        prompts("mme", tmp_path, tmp_path)


@pytest.mark.parametrize(("published", "put"), [("I see. What IS it? ", "I see. what is it? "), ("where?", "Where?")])
def test_vizwiz_prompts_of_llava(published, put, tmp_path):
    """LLaVA's file holds `.capitalize()`d questions and goes first where both files lie there."""
    mini.vizwiz(tmp_path)
    rows = json.loads((tmp_path / "vizwiz" / "test.json").read_text())
    rows[0]["question"] = published
    dump(tmp_path / "vizwiz" / "test.json", rows)
    [first, _] = prompts("vizwiz", tmp_path, tmp_path)
    assert first.split("\n")[1] == put
    lines = [{"question_id": n, "image": row["image"], "text": f"LLaVA's {n}"} for n, row in enumerate(rows)]
    dump(tmp_path / "vizwiz" / "llava_test.jsonl", lines)
    assert prompts("vizwiz", tmp_path, tmp_path) == ["<image>\nLLaVA's 0", "<image>\nLLaVA's 1"]


@pytest.mark.parametrize("question", ["What is to the left of the laptop? ", " What?", "What?"])
def test_a_question_is_put_as_it_stands(question, checkpoint, tmp_path):
    """One of MM-Vet's ends in a blank, which LLaVA's script keeps: two blanks then stand before ASSISTANT."""
    mini.mmvet(tmp_path)
    path = tmp_path / "mm-vet" / "mm-vet.json"
    rows = json.loads(path.read_text())
    rows["v1_0"]["question"] = question
    dump(path, rows)
    made = BENCHMARKS["mmvet"].questions(tmp_path, tmp_path)
    asked = read_questions(dump(tmp_path / "asked.json", made.records), made.image_folder)
    processor = family_of(checkpoint).load_processor(checkpoint)
    ids = PromptMaker(processor, "v1").prompt(asked.requests[0]).input_ids.tolist()
    words = processor.tokenizer(f"\n{question} ASSISTANT:", add_special_tokens=False).input_ids
    assert ids[ids.index(processor.image_token_id) + 1 :] == words


@pytest.mark.parametrize("asked", ["COCO_val2014_000000441147.jpg", "000000441147.jpg"])
@pytest.mark.parametrize("file", ["COCO_val2014_000000441147.jpg", "000000441147.jpg"])
def test_llava_bench_coco_with_and_without_the_prefix(asked, file, tmp_path):
    mini.llava_benches(tmp_path)
    folder = tmp_path / "llava-bench-coco"
    [row] = [json.loads(line) for line in (folder / "qa90_questions.jsonl").read_text().splitlines()]
    dump(folder / "qa90_questions.jsonl", [row | {"image": asked}])
    [image] = (folder / "val2014").iterdir()
    image.rename(image.with_name(file))
    [record] = BENCHMARKS["llava_bench_coco"].questions(tmp_path, tmp_path).records
    assert record["image"] == file


def test_seed_takes_images_only(data, tmp_path):
    records = BENCHMARKS["seed"].questions(data, tmp_path).records
    assert [record["id"] for record in records] == ["101669", "101670"]
    assert records[0]["category"] == "Instances Counting"


@pytest.mark.parametrize(
    ("make", "name", "file", "content", "said"),
    [
        (mini.pope, "pope", "pope/coco/coco_pope_popular.json", '{"question_id": 1}\n', "has no image, text, label"),
        (mini.pope, "pope", "pope/coco/coco_pope_popular.json", '{"question_id": 1, "ima', "coco_pope_popular.json"),
        (mini.gqa, "gqa", "gqa/data/testdev_balanced_questions.json", '{"1": {', "not valid JSON"),
        (mini.gqa, "gqa", "gqa/data/testdev_balanced_questions.json", '{"1": {"imageId": "n"}}', "no question, answer"),
        (mini.seed, "seed", "seed_bench/SEED-Bench.json", '{"questions": []}', "data_type image"),
        (mini.seed, "seed", "seed_bench/SEED-Bench.json", "[]", "has no questions"),
        (mini.mmbench, "mmbench", "mmbench/mmbench_dev_20230712.tsv", "index\tquestion\n", "no column A, B, image"),
        (mini.textvqa, "textvqa", "textvqa/TextVQA_0.5.1_val.json", '{"data": []}', "no list `data`"),
        (mini.sqa, "sqa", "scienceqa/pid_splits.json", '{"test": ["5"]}', "has no 5"),
        (mini.mme, "mme", "MME/MME_Benchmark_release_version/OCR/0001.txt", "Is it?\tYes\n", "holds 1 questions"),
        (mini.mme, "mme", "MME/MME_Benchmark_release_version/OCR/0001.txt", "Is it?\nIs it?\n", "line 1"),
        (mini.mmvet, "mmvet", "mm-vet/mm-vet.json", '{"v1_0": {"question": "q"}}', "no imagename, answer"),
        (mini.vqav2, "vqav2", "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json",
         '{"questions": [3]}', "record 0"),
        (mini.vizwiz, "vizwiz", "vizwiz/test.json", "", "is empty"),
        (mini.llava_benches, "llava_bench_wild", "llava-bench-in-the-wild/context.jsonl",
         '{"image": "2.jpg"}', "001.jpg"),
        (mini.llava_benches, "llava_bench_coco", "llava-bench-coco/qa90_gpt4_answer.jsonl",
         '{"question_id": 7, "text": "x"}', "no answer to question 0"),
    ],
)  # fmt: skip
def test_broken_files_are_named(make, name, file, content, said, tmp_path):
    make(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        BENCHMARKS[name].questions(tmp_path, tmp_path / "unpacked")
    assert str(tmp_path / file.split("/")[0]) in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_names_its_missing_files(name, tmp_path):
    with pytest.raises(MissingDataError, match=f"missing: {tmp_path}"):
        BENCHMARKS[name].questions(tmp_path, tmp_path / "unpacked")


def test_an_image_that_is_none(tmp_path):
    mini.mmbench(tmp_path)
    path = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    path.write_text("index\tquestion\tA\tB\timage\n7\tq\ta\tb\t" + "%" * 100 + "\n")
    with pytest.raises(DataError, match=r"record 7: its image is not base64"):
        prompts("mmbench", tmp_path, tmp_path)
    path.write_text("index\tquestion\tA\tB\timage\n1000007\tq\ta\tb\t7\n")
    with pytest.raises(DataError, match="row 1000007: its image is that of row 7"):
        prompts("mmbench", tmp_path, tmp_path)
