"""docs/serving.md: its template gives our prompts, its client our answer files."""

import base64
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.answers import identify, read_answers
from llava.data.template import encode_prompt
from llava.model.family import family_of

DOC = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def block(language):
    return re.search(rf"```{language}\n(.*?)```", DOC, re.DOTALL)[1]


def test_the_template_gives_the_v1_prompt_token_for_token(checkpoints):
    processor = family_of(checkpoints["llava"]).load_processor(checkpoints["llava"])
    turns = [("human", "<image>\nwhat?"), ("gpt", "a square"), ("human", "and now?")]
    wanted = encode_prompt([{"from": role, "value": text} for role, text in turns], "v1", processor)
    messages = [{"role": {"human": "user", "gpt": "assistant"}[role], "content": text} for role, text in turns]
    ids = processor.tokenizer.apply_chat_template(
        messages, chat_template=block("jinja"), add_generation_prompt=True, return_dict=False
    )
    assert ids == wanted.tolist()


@pytest.fixture
def server():
    heard = []

    class Reply(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((self.path, body))
            text = body["messages"][0]["content"][-1]["text"]
            said = json.dumps({"choices": [{"message": {"content": f" {text}! "}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


def test_the_client_writes_an_answer_file(world, server):
    address, heard = server
    script = world / "answer_by_server.py"
    script.write_text(block("python"))
    (world / "answers").mkdir()
    files = [str(world / name) for name in ("vqa_val-7.json", "cap_val-5.json")]
    words = [address, "final", str(world / "images"), str(world / "answers"), *files]
    subprocess.run([sys.executable, str(script), *words], check=True, timeout=120)
    assert len(heard) == 12
    assert {path for path, _ in heard} == {"/v1/chat/completions"}
    questions = json.loads(Path(files[0]).read_text())
    samples = read_answers(world / "answers" / "vqa_val-7_final.json")
    assert identify(world / "answers" / "vqa_val-7_final.json", samples)["model"] == "final"
    for sample, question in zip(samples, questions, strict=True):
        text = question["conversations"][0]["value"].removeprefix("<image>\n")
        assert sample.prediction == f"{text}!"
        [body] = [body for _, body in heard if body["messages"][0]["content"][-1]["text"] == text]
        sent = [part["image_url"]["url"].split(",")[1] for part in body["messages"][0]["content"][:-1]]
        files = [(world / "images" / question["image"]).read_bytes()] if "image" in question else []
        assert [base64.b64decode(data) for data in sent] == files
