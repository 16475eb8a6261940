"""`visatb zeroshot` from end to end: the tiny model on every benchmark in miniature, and what comes of it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openpyxl
import pytest
import torch

from llava.eval.registry import BENCHMARKS
from llava.eval.run import main
from llava.infer.engine import Generator
from llava.model.load import load_model_and_processor
from tests.zeroshot.mini import mmvet, pope, seed

SERVED = {"mmvet", "llava_bench_wild", "llava_bench_coco", "vqav2", "vizwiz"}  # not scored without server or judge
QUESTIONS = {
    "textvqa": 2,
    "pope": 6,
    "mme": 56,
    "sqa": 3,
    "mmbench": 3,
    "seed": 2,
    "mmvet": 2,
    "mmbench_cn": 1,
    "llava_bench_wild": 2,
    "llava_bench_coco": 1,
    "vqav2": 2,
    "gqa": 2,
    "vizwiz": 2,
}


def read(path):
    return json.loads(path.read_text())


def command(checkpoint, data, out, *more):
    words = [checkpoint, "--data", data, "--output", out, "--model-name", "EW", "--max-new-tokens", 3, *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def evaluated(checkpoint, data, tmp_path_factory):
    """The output of a run over all benchmarks, in one process; tests add to it and take nothing away."""
    out = tmp_path_factory.mktemp("out")
    assert main(command(checkpoint, data, out)) == 0
    return out


@pytest.fixture
def no_model(monkeypatch):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("llava.infer.checkpoint.load_model_and_processor", loaded)


def test_every_benchmark_is_answered_and_scored(evaluated):
    summary = read(evaluated / "summary_EW.json")
    assert list(summary["benchmarks"]) == list(BENCHMARKS)
    assert {name: entry["num_samples"] for name, entry in summary["benchmarks"].items()} == QUESTIONS
    for name, entry in summary["benchmarks"].items():
        stem = f"{name}_test-{QUESTIONS[name]}"
        answers = read(evaluated / "answers" / f"{stem}_EW.json")
        assert all(record["conversations"][1]["generator"] == "EW" for record in answers)
        assert any(record["conversations"][1]["generative_value"] for record in answers)
        questions = read(evaluated / "questions" / f"{stem}.json")
        assert [record["id"] for record in answers] == [record["id"] for record in questions]
        scores = evaluated / "scores" / f"{stem}_EW.json"
        assert scores.exists() == (name not in SERVED)
        assert ("scores" in entry) == (name not in SERVED)
        if scores.exists():
            content = read(scores)
            assert {content["task"], content["model"], content["split"]} == {name, "EW", "test"}
            assert content["scores"] == entry["scores"]
            assert set(content["scores"][0]) >= {"metric", "value", "stderr", "higher_is_better"}
            assert 0 <= content["num_malformed"] <= content["num_samples"] == QUESTIONS[name]


def submission(out, name):
    [path] = (out / "submissions").glob(f"{name}_test-{QUESTIONS[name]}_EW.*")
    return path


def answers_of(out, name):
    records = read(out / "answers" / f"{name}_test-{QUESTIONS[name]}_EW.json")
    return [record["conversations"][1]["generative_value"] for record in records]


def test_submissions(evaluated):
    sheet = openpyxl.load_workbook(submission(evaluated, "mmbench")).active
    header, *rows = sheet.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert [row[0] for row in rows] == [241, 1_000_241, 252]
    assert [row[6] or "" for row in rows] == answers_of(evaluated, "mmbench")

    vqa = read(submission(evaluated, "vqav2"))
    assert [row["question_id"] for row in vqa] == [262144000, 262144001, 262144002]
    assert vqa[0]["answer"] == ""  # not in test-dev

    assert [row["image"] for row in read(submission(evaluated, "vizwiz"))] == [
        "VizWiz_test_00000000.jpg",
        "VizWiz_test_00000001.jpg",
    ]
    assert read(submission(evaluated, "mmvet")) == dict(
        zip(["v1_0", "v1_1"], answers_of(evaluated, "mmvet"), strict=True)
    )
    lines = [json.loads(line) for line in submission(evaluated, "seed").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["101669", "101670"]
    assert [row["questionId"] for row in read(submission(evaluated, "gqa"))] == ["201307251", "201640614"]


def test_finished_answers_are_used_again(evaluated, checkpoint, data, no_model, capsys):
    before = read(evaluated / "summary_EW.json")
    assert main(command(checkpoint, data, evaluated, "--benchmarks", "pope,gqa")) == 0
    assert read(evaluated / "summary_EW.json") == before  # the other benchmarks of the same run stay
    table = capsys.readouterr().out
    assert "MME" in table
    assert "POPE" in table


def test_a_trial_stands_apart(evaluated, checkpoint, data, tmp_path):
    words = command(checkpoint, data, evaluated, "--benchmarks", "pope", "gqa", "--max-samples", "1")
    words[words.index("EW")] = "trial"
    assert main(words) == 0
    trial = read(evaluated / "summary_trial.json")["benchmarks"]
    assert {name: entry["num_samples"] for name, entry in trial.items()} == {"pope": 1, "gqa": 1}
    assert not any("submission" in entry for entry in trial.values())
    assert list(trial["pope"]["groups"]) == ["random"]


def test_a_stopped_run_goes_on(checkpoint, data, tmp_path, monkeypatch):
    asked = []
    generate = Generator.generate_batches

    def watch(self, prompts):
        if len(asked) >= 6:
            raise ValueError("stopped")
        for batch in generate(self, prompts):
            asked.extend(batch)
            yield batch

    words = command(checkpoint, data, tmp_path / "out", "--benchmarks", "pope", "seed", "gqa")
    monkeypatch.setattr(Generator, "generate_batches", watch)
    assert main(words) == 2
    assert len(asked) == 6  # POPE; stopped in SEED-Bench
    assert not (tmp_path / "out" / "summary_EW.json").exists()
    asked.clear()
    assert main(words) == 0
    assert len(asked) == 4


def test_shares_of_two_processes(checkpoint, tmp_path, monkeypatch):
    pope(tmp_path / "eval")
    words = command(checkpoint, tmp_path / "eval", tmp_path / "out", "--benchmarks", "pope")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 0
    assert not (tmp_path / "out" / "summary_EW.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(words) == 0
    assert read(tmp_path / "out" / "summary_EW.json")["benchmarks"]["pope"]["num_samples"] == 6


def test_generators_of_one_model_keep_its_end_tokens(checkpoint):
    model, processor = load_model_and_processor(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = [2, 17]
    ends = [Generator(model, processor).end.token_ids for _ in range(2)]
    assert ends[0] == ends[1]
    assert 17 in ends[0]


class _Judge(BaseHTTPRequestHandler):
    """Says 8 and 6 to a review, 0.5 to a grade."""

    asked: list[str] = []  # noqa: RUF012

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        self.asked.append(text)
        said = "0.5" if text.rstrip().endswith("Grade:") else "8 6\nThe first knows more."
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A judge on the loopback address; the questions it was asked."""
    server = HTTPServer(("127.0.0.1", 0), _Judge)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("JUDGE_MODEL", "judge-1")
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "judge.jsonl"))
    _Judge.asked.clear()
    yield _Judge.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_judged_scores(evaluated, checkpoint, data, judge, no_model):
    pytest.importorskip("openai")
    words = ["--benchmarks", "mmvet", "llava_bench_wild", "llava_bench_coco", "--judge"]
    assert main(command(checkpoint, data, evaluated, *words)) == 0
    entries = read(evaluated / "summary_EW.json")["benchmarks"]
    assert entries["llava_bench_wild"]["scores"][0]["value"] == pytest.approx(75)
    assert entries["llava_bench_coco"]["scores"][0]["judge"]["model"] == "judge-1"
    assert set(entries["llava_bench_wild"]["groups"]) == {"conv", "detail"}
    given = [bool(text.strip()) for text in answers_of(evaluated, "mmvet")]  # a blank answer has grade 0 unasked
    assert entries["mmvet"]["scores"][0]["value"] == pytest.approx(50 * sum(given) / 2)
    assert {"ocr", "math", "rec"} <= set(entries["mmvet"]["groups"])
    assert sum("A beach." in text for text in judge) == 2
    assert sum("suitcase: [0.1, 0.2, 0.3, 0.4]" in text for text in judge) == 1


def test_no_judge_is_said_before_anything_is_done(checkpoint, data, tmp_path, no_model, monkeypatch, capsys):
    monkeypatch.delenv("JUDGE_MODEL", raising=False)
    assert main(command(checkpoint, data, tmp_path / "out", "--benchmarks", "mmvet", "--judge")) == 2
    assert "JUDGE_MODEL" in capsys.readouterr().err


def test_missing_files_are_all_named(checkpoint, tmp_path, no_model, capsys):
    mmvet(tmp_path)
    assert main(command(checkpoint, tmp_path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for name in set(BENCHMARKS) - {"mmvet"}:
        assert f"{name}: missing: {tmp_path}" in said or f"\n{name}: missing" in said, name
    assert "coco_pope_random.json" in said


def test_missing_benchmarks_can_be_left_out(checkpoint, tmp_path):
    mmvet(tmp_path)
    assert main(command(checkpoint, tmp_path, tmp_path / "out", "--skip-missing", "--max-samples", "1")) == 0
    assert list(read(tmp_path / "out" / "summary_EW.json")["benchmarks"]) == ["mmvet"]


def test_a_missing_image_is_named_before_the_model_is_loaded(checkpoint, tmp_path, no_model, capsys):
    pope(tmp_path)
    seed(tmp_path)
    (tmp_path / "seed_bench" / "SEED-Bench-image" / "454427").unlink()
    assert main(command(checkpoint, tmp_path, tmp_path / "out", "--benchmarks", "pope", "seed")) == 2
    said = capsys.readouterr().err
    assert "454427" in said
    assert "101670" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "--data", ".", "--benchmarks", "nocaps"], "no benchmark nocaps; known: all, textvqa"),
        (["nowhere/model", "--data", "."], "nowhere/model"),
        (["--compare", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input(words, said, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["x"], ["x", "--data", ".", "--max-samples", "0"], ["--nonsense"]])
def test_bad_usage(words):
    with pytest.raises(SystemExit, match="2"):
        main(words)


# Table 4 of the paper
TABLE = {
    "EW": (53.96, 86.83, 1524.41, 60.74, 48.54, 54.13, 29.00),
    "TLA": (50.74, 86.94, 1426.51, 55.86, 52.92, 46.67, 28.70),
    "VisATB": (53.87, 86.73, 1501.86, 61.07, 51.46, 58.05, 29.30),
}


def summaries(folder, methods, **run):
    names = ("textvqa", "pope", "mme", "sqa", "mmbench", "seed", "mmvet")
    paths = []
    for method, values in methods.items():
        entries = {}
        for name, value in zip(names, values, strict=False):
            scale = 1.0 if name in ("mme", "mmvet") else 100.0
            scores = [{"metric": "chief", "value": value / scale, "scale": scale}]
            entries[name] = {"title": BENCHMARKS[name].title, "num_samples": 1, "scores": scores}
        entries["vqav2"] = {"title": "VQAv2", "num_samples": 1, "note": "its server scores it"}
        paths.append(folder / f"summary_{method}.json")
        paths[-1].write_text(json.dumps({"model": method, "run": run, "benchmarks": entries}))
    return [str(path) for path in paths]


def test_methods_are_compared_as_in_the_paper(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--compare", *summaries(tmp_path, TABLE), "--output", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "ΔI_zero%"
    assert {line.split()[0]: line.split()[-1] for line in lines[1:]} == {"EW": "0.00", "TLA": "-3.73", "VisATB": "1.87"}
    assert read(out / "comparison.json")["delta_i_zero"]["VisATB"] == pytest.approx(1.87, abs=0.005)


def test_eval_overall_reads_the_comparison(tmp_path, capsys):
    from eval.overall import main as overall

    assert main(["--compare", *summaries(tmp_path, TABLE), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert overall([str(tmp_path / "out" / "comparison.json"), "--zero"]) == 0
    assert "1.87" in capsys.readouterr().out


def test_what_a_comparison_lacks_is_said(tmp_path, capsys):
    without = {method: values[:-1] for method, values in TABLE.items()}
    assert main(["--compare", *summaries(tmp_path, without)]) == 0
    said = capsys.readouterr().out
    assert "no ΔI_zero%" in said
    assert "MM-Vet" in said
    assert main(["--compare", *summaries(tmp_path, TABLE, max_samples=9)]) == 0
    assert "first questions only" in capsys.readouterr().out
    assert main(["--compare", *summaries(tmp_path, {"TLA": TABLE["TLA"]})]) == 2
    assert "baseline 'EW'" in capsys.readouterr().err
