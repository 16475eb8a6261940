"""The judged metrics: figures, estimate, settings, cache, commands, and the 90 questions of LLaVA-Bench (COCO)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eval.judge
from eval.errors import EvaluationError
from eval.judge import JudgeMetric, MMVetMetric, main
from eval.judge_cache import Reply, ReplyCache, request_key
from eval.judge_client import OPENAI, JudgeSettings, default_cache
from eval.judge_panel import count_tokens
from eval.metrics import load_metric
from tests.eval.judge_records import record, sample, samples_of, write
from tests.eval.judge_server import Answer, JudgeServer, completion

BENCH = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "llava_bench_coco"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("JUDGE_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def server():
    with JudgeServer(lambda *_: Answer(completion("8 6"))).running() as server:
        yield server


def test_figures_are_ratios_of_sums_over_all_and_by_category(tmp_path, server):
    given = {"A": (8, 4), "B": (10, 9), "C": (5, 5), "D": (9.5, 7.5), "E": None}
    categories = {"A": "conv", "B": "conv", "C": "detail", "D": "detail", "E": "detail"}

    def behaviour(prompt, _):
        scores = given[prompt.partition("[Assistant 2]\n")[2][0]]
        return Answer(completion(f"{scores[0]} {scores[1]}\nx" if scores else "no idea"))

    server.behaviour = behaviour
    records = [record(name, "?", "truth", name, category=categories[name], context="x") for name in given]
    out, rows = tmp_path / "s.json", tmp_path / "p.json"
    command = ["-a", str(write(tmp_path / "chat_val-5_mini.json", records)), "--judge_model", "j"]
    command += ["--base_url", server.url, "--output", str(out), "--per_sample", str(rows)]
    assert main(command) == 0
    content = json.loads(out.read_text())
    assert (content["num_samples"], content["num_malformed"]) == (5, 1)
    (entry,) = content["scores"]
    reference, model = np.array([given[name] for name in "ABCD"]).T
    assert entry["metric"] == "judge"
    assert entry["value"] == pytest.approx(100 * model.mean() / reference.mean())
    judge = entry["judge"]
    assert judge["categories"]["conv"]["value"] == pytest.approx(100 * 13 / 18)
    assert judge["categories"]["conv"]["mean_reference"] == 9
    assert judge["categories"]["detail"]["value"] == pytest.approx(100 * 12.5 / 14.5)
    assert [part["num_judged"] for part in judge["categories"].values()] == [2, 2]
    assert (judge["model"], judge["served_by"], judge["base_url"]) == ("j", ["judge-2026-01"], server.url)
    assert judge["request"] == {"temperature": 0.2, "max_tokens": 1024}
    assert (judge["num_replies"], judge["prompt_tokens"]) == (4 + 3, 700)
    samples = json.loads(rows.read_text())["samples"]
    values, weights = (np.array([row[name]["judge"] for row in samples]) for name in ("values", "weights"))
    assert np.average(values, weights=weights) == pytest.approx(entry["value"])
    assert weights[4] == 0
    # ratio of two sums, linearised: independent of the code's own formula
    residuals = model - entry["value"] / 100 * reference
    spread = 100 * np.sqrt(np.sum(residuals**2) * 5 / 4) / reference.sum()
    assert entry["stderr"] == pytest.approx(spread)


def test_table_7_is_what_the_metric_of_one_category_gives(tmp_path, server):
    """30 answers of a category whose scores sum to 52.2% of the references'."""
    scores = [(10, 5.22)] * 30
    server.behaviour = lambda prompt, _: Answer(completion("{} {}\nx".format(*scores[int(prompt.split("#")[1])])))
    records = [record(i, f"?#{i}#", "truth", "answer", task="conversation", context="x") for i in range(30)]
    metric = JudgeMetric(JudgeSettings(model="j", base_url=server.url, cache=tmp_path / "c"))
    scored = metric.score(samples_of(tmp_path, *records))
    assert f"{scored.columns[0].mean():.1f}" == "52.2"
    assert list(scored.columns[0].details["judge"]["categories"]) == ["conversation"]


def test_mm_vet_by_capability_and_combination(tmp_path, server, monkeypatch):
    grades = {"one": "0.5", "two": "1.0", "four": "0.1"}
    server.behaviour = lambda prompt, _: Answer(completion(grades[prompt.split("Answer: ")[-1].split("\n")[0]]))
    records = [
        record(1, "?", "a <AND> b", "one", capability=["rec", "ocr"]),
        record(2, "?", ["a", "b"], "two", capability=["ocr", "rec"]),
        record(3, "?", "a", "  ", capability=["math"]),
        record(4, "?", "a", "four", capability=["rec"]),
    ]
    monkeypatch.setenv("JUDGE_MODEL", "j")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    scored = load_metric("mmvet").score(samples_of(tmp_path, *records))
    assert server.asked.total() == 3  # a blank answer needs no judge
    assert scored.malformed == [False, False, True, False]
    assert scored.columns[0].mean() == pytest.approx(100 * (0.5 + 1 + 0 + 0.1) / 4)
    judge = scored.columns[0].details["judge"]
    assert {name: round(part["value"], 6) for name, part in judge["capabilities"].items()} == {
        "math": 0,
        "ocr": 75,
        "rec": pytest.approx(160 / 3),
    }
    assert {name: part["value"] for name, part in judge["combinations"].items()} == {
        "math": 0,
        "ocr+rec": pytest.approx(75),
        "rec": pytest.approx(10),
    }
    assert judge["request"]["temperature"] == 0


def test_capabilities_must_be_names(tmp_path, server):
    metric = MMVetMetric(JudgeSettings(model="j", base_url=server.url, cache=tmp_path / "c"))
    server.behaviour = lambda *_: Answer(completion("0.5"))
    with pytest.raises(EvaluationError, match="record id q0: `capability` must be a list"):
        metric.score([sample(tmp_path, capability="rec,ocr")])


def test_dry_run_says_what_it_takes_and_asks_nothing(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)  # not even installed
    records = [record(i, f"?{i % 3}", "truth", "answer", context="x") for i in range(4)]
    answers = write(tmp_path / "answers.json", records)
    command = ["-a", str(answers), "--judge_model", "j", "--base_url", server.url, "--dry_run", "--price", "10", "30"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "3 requests" in out
    assert "at most 3,072 out" in out
    tokens = int(re.search(r"about ([\d,]+) in", out)[1].replace(",", ""))
    low, most = map(float, re.search(r"price: ([\d.]+) to ([\d.]+) dollars", out).groups())
    assert low == pytest.approx(tokens * 10 / 1e6, abs=0.005)
    assert most == pytest.approx(tokens * 10 / 1e6 + 3072 * 30 / 1e6, abs=0.005)
    assert server.asked.total() == 0
    assert not default_cache().exists()


def test_dry_run_knows_what_is_kept(tmp_path, server, capsys):
    records = [record(i, f"?{i}", "truth", "answer", context="x") for i in range(4)]
    command = ["--judge_model", "j", "--base_url", server.url]
    assert main(["-a", str(write(tmp_path / "a.json", records[:3])), *command]) == 0
    assert main(["-a", str(write(tmp_path / "b.json", records)), *command, "--dry_run"]) == 0
    assert "4 questions: 3 answered already or twice in the file, 1 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "Several factors could make the two stacked suitcases valuable. Their age, their rarity and the leather that "
        "they are made of may attract collectors, who'd pay more for a well-kept pair (with its tags) than for one.",
        "\n".join(f"suitcase: [0.{x}, 0.{x + 17}, 0.{x + 123}, 0.{x + 258}]" for x in range(103, 700, 41)),
    ],
    ids=["prose", "boxes"],
)
def test_token_counts_are_near_those_of_a_real_tokenizer(text):
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    folder = Path(sys.modules["mistral_common"].__file__).parent / "data"
    tokenizer = tekken.Tekkenizer.from_file(str(folder / "tekken_240911.json"))
    tokens = len(tokenizer.encode(text, bos=False, eos=False))
    tokens -= sum(len(digits) - 1 for digits in re.findall(r"[0-9]{1,3}", text))  # it parts all digits, OpenAI's do not
    assert count_tokens(text) == pytest.approx(tokens, rel=0.25)


def test_what_is_kept_can_be_scored_without_client_or_key(tmp_path, server, monkeypatch):
    settings = JudgeSettings(model="j", base_url=server.url, cache=tmp_path / "c.jsonl")
    samples = samples_of(tmp_path, record(0, "?", "truth", "answer", context="x"))
    first = JudgeMetric(settings).score(samples)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert JudgeMetric(settings).score(samples) == first
    with pytest.raises(EvaluationError, match="pip install"):
        JudgeMetric(settings).score([sample(tmp_path, "another?")])


def test_without_a_key_nothing_is_sent_to_openai(tmp_path, caplog):
    metric = JudgeMetric(JudgeSettings(model="j", cache=tmp_path / "c.jsonl"))
    assert "set OPENAI_API_KEY" in caplog.text
    with pytest.raises(EvaluationError, match="set OPENAI_API_KEY"):
        metric.score([sample(tmp_path)])


def test_settings_come_from_the_environment_unless_given(monkeypatch, tmp_path):
    with pytest.raises(EvaluationError, match="set JUDGE_MODEL"):
        load_metric("judge")
    monkeypatch.setenv("JUDGE_MODEL", "a")
    monkeypatch.setenv("JUDGE_REQUEST", '{"seed": 1}')
    monkeypatch.setenv("JUDGE_CONCURRENCY", "3")
    settings = JudgeSettings.from_environment()
    assert (settings.model, settings.base_url, settings.request, settings.concurrency) == ("a", OPENAI, {"seed": 1}, 3)
    assert settings.cache == tmp_path / "user-cache" / "visatb" / "judge.jsonl"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1/")
    assert JudgeSettings.from_environment(model="b", concurrency=1) == JudgeSettings(
        "b", "http://localhost:8000/v1", {"seed": 1}, 1, cache=settings.cache
    )
    monkeypatch.setenv("JUDGE_CONCURRENCY", "many")
    with pytest.raises(EvaluationError, match="JUDGE_CONCURRENCY: 'many'"):
        JudgeSettings.from_environment()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"request": {"model": "x"}}, "model cannot be set"),
        ({"base_url": "ftp://x"}, "must begin with http"),
        ({"base_url": "localhost:8000/v1"}, "must begin with http"),
        ({"base_url": "http://me:secret@host/v1"}, "no password"),
        ({"base_url": "http://host/v1?key=secret"}, "no query"),
    ],
)
def test_settings_that_cannot_be(bad, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        JudgeSettings(**{"model": "j", **bad})
    assert "secret" not in str(caught.value)


def test_bad_input_ends_with_2_and_one_line(tmp_path, capsys):
    answers = write(tmp_path / "a.json", [record(0, "?", "truth", "answer")])
    for more in (["--rule", str(tmp_path / "none.json")], ["--protocol", "mmvet", "--rule", "x"], ["--request", "[1]"]):
        assert main(["-a", str(answers), "--judge_model", "j", "--dry_run", *more]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit) as caught:
        main(["-a", str(answers), "--judge_model", "j", "--request", "{"])
    assert caught.value.code == 2


def test_the_command_runs_from_anywhere_and_starts_without_its_client(tmp_path):
    answers = write(tmp_path / "a.json", [record(0, "?", "truth", "answer", context="x")])
    code = "import runpy, sys; sys.modules['openai'] = sys.modules['torch'] = None; sys.argv[:] = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, eval.judge.__file__, "-a", str(answers), "--judge_model", "j", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 requests" in done.stdout


def test_broken_lines_of_the_cache_are_passed_over(tmp_path, caplog):
    path = tmp_path / "folder" / "c.jsonl"
    key = request_key("http://x", "j", {}, [])
    with ReplyCache(path) as cache:
        cache.add(key, Reply("8 6\nüber"), {})
    whole = path.read_bytes()
    path.write_bytes(b'{"key": 1}\n\xff\xfe\n[]\n' + whole + whole[:20])
    with ReplyCache(path) as cache:
        cache.add(key, Reply("9 9"), {})
    assert [reply.text for reply in ReplyCache(path).replies(key)] == ["8 6\nüber", "9 9"]
    assert "line 5: not a whole reply" in caplog.text
    assert path.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_paid(tmp_path, server):
    (tmp_path / "file").write_text("")
    metric = JudgeMetric(JudgeSettings(model="j", base_url=server.url, cache=tmp_path / "file" / "c.jsonl"))
    with pytest.raises(EvaluationError, match=r"cache cannot be written|cannot be read"):
        metric.score([sample(tmp_path, context="x")])
    assert server.asked.total() == 0


@pytest.mark.skipif(not BENCH.is_dir(), reason="LLaVA-Bench (COCO) is not beside this checkout")
def test_the_90_questions_of_llava_bench_coco_by_the_published_rules(tmp_path, server, capsys):
    questions, references = (
        [json.loads(line) for line in (BENCH / name).read_text().splitlines()]
        for name in ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl")
    )
    published = json.loads((BENCH / "rule.json").read_text())
    records = [
        record(
            q["question_id"],
            q["text"],
            r["text"],
            f"answer {q['question_id']}.",
            image=q["image"],
            category=q["category"],
        )
        for q, r in zip(questions, references, strict=True)
    ]

    def behaviour(prompt, _):
        number = int(re.search(r"\[Assistant 2\]\nanswer (\d+)\.", prompt)[1])
        return Answer(completion(f"{8 + number % 3} {1 + number % 7}\nReasons."))

    server.behaviour = behaviour
    out = tmp_path / "s.json"
    command = [
        "-a",
        str(write(tmp_path / "bench_val-90_mini.json", records)),
        "--judge_model",
        "j",
        "--output",
        str(out),
    ]
    command += ["--base_url", server.url, "--rule", str(BENCH / "rule.json")]
    command += ["--context", str(BENCH / "caps_boxes_coco2014_val_80.jsonl")]
    assert main(command) == 0
    assert sorted(server.asked.values()) == [1] * 90
    prompts = {int(re.search(r"\nanswer (\d+)\.", prompt)[1]): prompt for prompt in server.asked}
    for place, (question, reference) in enumerate(zip(questions, references, strict=True)):
        assert prompts[place].endswith(f"[System]\n{published[question['category']]['prompt']}\n\n")
        assert f"[Question]\n{question['text']}\n" in prompts[place]
        assert f"[Assistant 1]\n{reference['text']}\n\n[End of Assistant 1]" in prompts[place]
    suitcases = prompts[0].partition("[Question]")[0]
    assert suitcases.startswith("[Context]\nTwo antique suitcases sit stacked one on top of the other.\n")
    assert re.search(r"\n\nsuitcase: \[0\.\d+, 0\.\d+, 0\.\d+, [01]\.\d+\]\n", suitcases)
    printed, categories = capsys.readouterr().out, json.loads(out.read_text())["scores"][0]["judge"]["categories"]
    numbers = np.arange(90)
    for name in ("conv", "detail", "complex"):
        own = numbers[[q["category"] == name for q in questions]]
        value = 100 * (1 + own % 7).sum() / (8 + own % 3).sum()
        assert categories[name]["value"] == pytest.approx(value)
        assert f"  {name}: {value:.1f} (30 judged)" in printed
