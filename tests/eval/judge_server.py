"""A judge on the loopback address: a real HTTP server whose every answer a test decides, and which counts."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None, finish_reason: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-2026-01",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
    }


@dataclass
class Answer:
    """What the server sends: `cut` ends the body after so many bytes, `hold` waits for an event before all else."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    hold: threading.Event | None = None


Behaviour = Callable[[str, int], Answer]  # (prompt, how many times it came before) → answer


class JudgeServer:
    """Counts requests and whole answers of status 200 by prompt (the last message), and keeps every request."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.authorization: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[JudgeServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = request["messages"][-1]["content"]
        with self._lock:
            before = self.asked[prompt]
            self.asked[prompt] += 1
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.authorization.add(handler.headers.get("Authorization"))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert handler.path == "/v1/chat/completions"
        try:
            self._send(handler, prompt, self.behaviour(prompt, before))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other side gave up or was killed
        finally:
            with self._lock:
                self.at_once -= 1

    def _send(self, handler: BaseHTTPRequestHandler, prompt: str, answer: Answer) -> None:
        if answer.hold:
            answer.hold.wait(60)
        time.sleep(answer.delay)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content if answer.cut is None else content[: answer.cut])
        if answer.status == 200 and answer.cut is None:
            with self._lock:
                self.paid[prompt] += 1
