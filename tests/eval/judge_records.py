"""Answer files for the judge's tests."""

import json

from eval.answers import read_answers


def record(place, question, truth, answer, **more):
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    turns.append({"from": "gpt", "value": truth, "generative_value": answer})
    return {"id": f"q{place}", "conversations": turns, **more}


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def samples_of(tmp_path, *records):
    return read_answers(write(tmp_path / "answers.json", list(records)))


def sample(tmp_path, question="What is it?", truth="A cat.", answer="A dog.", **more):
    return samples_of(tmp_path, record(0, question, truth, answer, **more))[0]
