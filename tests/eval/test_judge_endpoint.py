"""The judge over a real HTTP server on the loopback address: what fails, what is asked again, and what never is."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import eval.judge
from eval.answers import read_answers
from eval.errors import EvaluationError
from eval.judge import JudgeMetric
from eval.judge_client import JudgeSettings
from tests.eval.judge_server import Answer, JudgeServer, completion

GOOD = Answer(completion("8 6\nBoth saw the cat."))
KEY = "sk-never-to-be-seen"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("JUDGE_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.05)


def write_answers(path, count):
    turns = [{"from": "human"}, {"from": "gpt", "value": "A cat sits on a mat.", "generative_value": "A cat."}]
    records = [
        {
            "id": f"q{place}",
            "category": "conv",
            "context": "A cat on a mat.",
            "conversations": [turns[0] | {"value": f"<image>\nWhat is number {place}?"}, turns[1]],
        }
        for place in range(count)
    ]
    path.write_text(json.dumps(records))
    return path


def number(prompt):
    return int(prompt.partition("number ")[2].partition("?")[0])


@pytest.fixture
def server():
    with JudgeServer(lambda *_: GOOD).running() as server:
        yield server


@pytest.fixture
def score(server, tmp_path):
    """Score `count` answers against a behaviour: the score file's words on the judge, and what the metric returned."""

    def run(behaviour, count=1, **settings):
        server.behaviour = behaviour
        samples = read_answers(write_answers(tmp_path / "answers.json", count))
        given = {"model": "j", "base_url": server.url, "cache": tmp_path / "c.jsonl", **settings}
        scored = JudgeMetric(JudgeSettings(**given)).score(samples)
        return scored.columns[0].details["judge"], scored

    return run


def test_429_waits_as_long_as_retry_after_says(score, server):
    limited = Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "1"})
    details, _ = score(lambda _, before: GOOD if before else limited)
    assert details["num_judged"] == 1
    assert server.asked.total() == 2
    assert server.times[1] - server.times[0] >= 1.0


@pytest.mark.parametrize(
    "bad",
    [
        Answer({"error": {"message": "broken"}}, 500),
        Answer(completion("8 6\nBoth"), cut=40),
        Answer(GOOD.body, delay=1.5),
        Answer(b'{"id": "chatcmpl-1", "choices": [{"mess'),
        Answer({"object": "chat.completion", "choices": [], "model": "j"}),
        Answer(b"<html>busy</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=["500", "connection-cut", "time-out", "half-json", "no-choices", "html"],
)
def test_a_request_that_fails_is_sent_again(score, server, bad):
    details, _ = score(lambda _, before: GOOD if before else bad, timeout=0.5)
    assert (details["num_judged"], details["num_replies"], server.asked.total()) == (1, 1, 2)


@pytest.mark.parametrize("status", [500, 429])
def test_an_endpoint_that_never_recovers_ends_the_run_and_keeps_what_came(score, server, status):
    broken = Answer({"error": {"message": f"no good today, {KEY}"}}, status)
    with pytest.raises(EvaluationError, match=r"record id q3.*no good today, \*\*\*.* 3 of 4 judgements") as caught:
        score(lambda prompt, _: broken if number(prompt) == 3 else GOOD, count=4, retries=2, concurrency=1)
    assert KEY not in str(caught.value)
    assert sorted(server.asked.values()) == [1, 1, 1, 3]
    score(lambda *_: GOOD, count=4)
    assert sorted(server.asked.values()) == [1, 1, 1, 4]


def test_a_judge_that_never_answers_in_time_is_told_so(score, server):
    with pytest.raises(EvaluationError, match=r"no answer within 0\.3 s"):
        score(lambda *_: Answer(GOOD.body, delay=1), timeout=0.3, retries=1)
    assert server.asked.total() == 2


def test_nobody_at_the_address(score):
    with pytest.raises(EvaluationError, match="connection failed"):
        score(lambda *_: GOOD, base_url="http://127.0.0.1:9/v1", retries=1)


def test_a_wrong_key_is_told_at_once_and_stops_everything(score, server):
    refused = Answer({"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}}, 401)
    with pytest.raises(EvaluationError, match="Incorrect API key") as caught:
        score(lambda *_: refused, count=20, concurrency=2)
    assert KEY not in str(caught.value)
    assert server.asked.total() <= 6
    assert max(server.asked.values()) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_questions_and_answers_do_not_follow_a_redirect(score, server, status):
    with JudgeServer(lambda *_: GOOD).running() as other:
        away = Answer({}, status, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(EvaluationError, match=rf"sends us on to '{other.url}/.*status {status}.*--base_url"):
            score(lambda *_: away)
    assert (server.asked.total(), other.asked.total()) == (1, 0)


def with_fields(**changed):
    """A good completion with fields of its message, its choice or itself changed."""
    whole = completion("8 6\nBoth saw the cat.")
    [choice] = whole["choices"]
    for place in (choice["message"], choice, whole, whole["usage"]):
        place.update({name: changed.pop(name) for name in list(changed) if name in place})
    assert not changed
    return whole


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (with_fields(content=["8 6"]), "its content is no text but list"),
        (with_fields(content=8.6), "its content is no text but float"),
        (with_fields(finish_reason={"a": 1}), "its finish_reason is no text but dict"),
        (with_fields(refusal=True), "its refusal is no text but bool"),
        (with_fields(model=7), "its model is no text but int"),
        (with_fields(prompt_tokens="many"), "its prompt_tokens is no number of tokens"),
        (with_fields(completion_tokens=-1), "its completion_tokens is no number of tokens"),
        (with_fields(completion_tokens=10**400), "its completion_tokens is no number of tokens"),
        (with_fields(choices={"0": 1}), "KeyError"),
        ([1, 2], "AttributeError"),
    ],
)
def test_a_reply_of_wrong_types_is_no_completion(score, server, tmp_path, monkeypatch, body, said):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(EvaluationError, match=rf"not with a chat completion \({said}\)"):
        score(lambda *_: Answer(body))
    assert server.asked.total() == 3
    assert (tmp_path / "c.jsonl").read_text() == ""  # nothing of it is kept


@pytest.mark.parametrize("status", [200, 400])
def test_a_reply_without_end_is_cut_short(score, server, monkeypatch, status):
    monkeypatch.setattr("eval.judge_client.MAX_REPLY", 1 << 20)
    with pytest.raises(EvaluationError, match="sends more than 1 MiB in one reply"):
        score(lambda *_: Answer(completion("8 6\n" + "x" * (2 << 20)), status))
    assert server.asked.total() == 1
    assert score(lambda *_: Answer(completion("8 6\n" + "x" * (1 << 19))))[0]["num_judged"] == 1


def test_a_packed_reply_is_not_unpacked(score, server):
    packed = Answer(gzip.compress(b" " * (64 << 20)), headers={"Content-Encoding": "gzip"})
    with pytest.raises(EvaluationError, match="packs its replies"):
        score(lambda *_: packed)
    assert server.asked.total() == 1


def test_unreadable_verdicts_are_asked_for_again_and_then_counted(score, server):
    def behaviour(prompt, before):
        if number(prompt) == 0:
            return Answer(completion("Both are good."))
        return GOOD if before else Answer(completion("Assistant 1 wins"))

    details, scored = score(behaviour, count=2)
    assert sorted(server.asked.values()) == [2, 3]
    assert {key: details[key] for key in ("num_judged", "num_refused", "num_unreadable", "num_replies")} == {
        "num_judged": 1,
        "num_refused": 0,
        "num_unreadable": 1,
        "num_replies": 5,
    }
    assert scored.malformed == [True, False]
    assert scored.columns[0].mean() == pytest.approx(75)  # the answer without a verdict stands outside
    assert [request["temperature"] for request in server.requests if number(request["messages"][-1]["content"])] == [
        0.2,
        0.5,
    ]


def test_verdicts_that_were_never_readable_are_not_paid_for_again(score, server):
    bad = Answer(completion("?"))
    first, _ = score(lambda prompt, _: GOOD if number(prompt) else bad, count=2)
    assert sorted(server.asked.values()) == [1, 3]
    again, _ = score(lambda *_: GOOD, count=2)
    assert again == first
    assert sorted(server.asked.values()) == [1, 3]
    more, _ = score(lambda *_: GOOD, count=2, attempts=4)  # the way to ask again all the same
    assert more["num_judged"] == 2
    assert sorted(server.asked.values()) == [1, 4]


@pytest.mark.parametrize(
    ("refusal", "requests"),
    [
        (Answer(completion(None, refusal="I can't judge people.")), 1),
        (Answer(completion("", "content_filter")), 1),
        (Answer({"error": {"message": "filtered", "code": "content_filter"}}, 400), 1),
        (Answer(completion("I’m sorry, but I cannot see images.")), 3),
    ],
    ids=["refusal", "finish", "status", "text"],
)
def test_refusals_are_counted(score, server, refusal, requests):
    details, scored = score(lambda p, _: GOOD if number(p) else refusal, count=2)
    assert (details["num_refused"], details["num_unreadable"], details["num_judged"]) == (1, 0, 1)
    assert scored.malformed == [True, False]
    assert sorted(server.asked.values()) == sorted([1, requests])


def test_a_reply_cut_off_in_its_verdict_is_none(score, server):
    def behaviour(_, before):
        return Answer(completion("8 6.5\nGood, but", "length") if before else completion("8 6", "length"))

    details, _ = score(behaviour)
    assert server.asked.total() == 2
    assert details["categories"]["conv"]["mean_model"] == 6.5


def test_no_verdict_at_all_is_an_error(score):
    with pytest.raises(EvaluationError, match="no verdict on any answer"):
        score(lambda *_: Answer(completion("no")), attempts=1)


def test_no_more_requests_at_a_time_than_asked_for(score, server):
    score(lambda *_: Answer(GOOD.body, delay=0.1), count=12, concurrency=3)
    assert server.most_at_once == 3


def test_the_key_goes_to_the_endpoint_and_nowhere_else(score, server, tmp_path, caplog):
    caplog.set_level("DEBUG")
    details, _ = score(lambda *_: GOOD)
    assert server.authorization == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(details) + caplog.text + (tmp_path / "c.jsonl").read_text()


def test_the_same_question_twice_in_a_file_is_asked_once(server, tmp_path):
    answers = write_answers(tmp_path / "answers.json", 3)
    answers.write_text(json.dumps(json.loads(answers.read_text()) * 2))
    metric = JudgeMetric(JudgeSettings(model="j", base_url=server.url, cache=tmp_path / "c.jsonl"))
    assert len(metric.score(read_answers(answers)).columns[0].values) == 6
    assert list(server.asked.values()) == [1, 1, 1]


def test_judges_that_share_a_cache_ask_nothing_twice(server, tmp_path):
    samples = read_answers(write_answers(tmp_path / "answers.json", 10))
    server.behaviour = lambda *_: Answer(GOOD.body, delay=0.05)
    settings = JudgeSettings(model="j", base_url=server.url, concurrency=2, cache=tmp_path / "c.jsonl")
    figures = []

    def work(part):
        figures.append(JudgeMetric(settings).score(part).columns[0].mean())

    threads = [threading.Thread(target=work, args=(part,)) for part in (samples[:7], samples)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert figures == [75, 75]
    assert sorted(server.asked.values()) == [1] * 10
    assert server.most_at_once <= 2


@pytest.mark.parametrize("change", [{"request": {"temperature": 0.0}}, {"model": "k"}], ids=["settings", "judge"])
def test_other_settings_or_another_judge_are_other_judgements(score, server, change):
    score(lambda *_: GOOD)
    details, _ = score(lambda *_: GOOD, **change)
    assert list(server.asked.values()) == [2]
    assert (details["model"], details["request"]["temperature"]) in (("j", 0.0), ("k", 0.2))


def test_fields_of_the_request_can_be_set_and_taken_out(score, server):
    score(lambda *_: GOOD, request={"max_tokens": None, "temperature": None, "max_completion_tokens": 99, "seed": 1})
    fields = server.requests[0].keys() - {"model", "messages"}
    assert {name: server.requests[0][name] for name in fields} == {"max_completion_tokens": 99, "seed": 1}


def test_an_endpoint_of_ones_own_needs_no_key(score, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert score(lambda *_: GOOD)[0]["num_judged"] == 1


def test_killed_and_resumed_asks_nothing_twice(server, tmp_path):
    count, first = 12, 5
    hold = threading.Event()
    started: list[str] = []

    def behaviour(prompt, _):
        started.append(prompt)
        return Answer(GOOD.body, hold=None if len(started) <= first or hold.is_set() else hold)

    server.behaviour, cache = behaviour, tmp_path / "c.jsonl"
    answers, output = write_answers(tmp_path / "answers.json", count), tmp_path / "score.json"
    command = [sys.executable, eval.judge.__file__, "-a", str(answers), "--output", str(output)]
    command += ["--judge_model", "j", "--base_url", server.url, "--cache", str(cache), "--concurrency", "3"]
    command += ["--task", "conversation", "--model", "mini", "--split", "val"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: cache.exists() and cache.read_bytes().count(b"\n") == first and server.at_once == 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert not output.exists()
    answered = {json.loads(line)["request"]["messages"][-1]["content"] for line in kept_lines(cache)}
    with cache.open("a") as stream:
        stream.write('{"key": "torn by the ki')
    hold.set()
    wait_for(lambda: server.at_once == 0)
    before = server.asked.copy()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    new = server.asked - before
    assert len(answered) == first
    assert (len(new), set(new.values())) == (count - first, {1})
    assert not new.keys() & answered
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert server.asked - before == new
    assert json.loads(output.read_text())["scores"][0]["value"] == pytest.approx(75)
    assert "torn" in cache.read_text()
    assert KEY not in cache.read_text() + done.stdout + done.stderr


def kept_lines(cache: Path) -> list[str]:
    return [line for line in cache.read_text().splitlines() if "torn" not in line]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the judge did not come that far"
        time.sleep(0.02)
