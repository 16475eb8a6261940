"""The judge's endpoint: any that speaks OpenAI's chat completions, through the `openai` client.

The client itself waits and tries again on 408, 409, 429, 5xx, time-outs and broken connections, for as long as
`Retry-After` asks (up to two minutes), else with growing pauses. The key comes from the environment only, and is
written nowhere.

Questions and answers go to the named address alone: redirects are not followed. What comes back is looked at before it
is kept: its size, and whether it is a completion of the right types.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from eval.errors import EvaluationError
from eval.judge_cache import Messages, Reply

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
NO_CLIENT = "judging needs the `openai` package: pip install 'visatb[judge]'"
NO_KEY = "set OPENAI_API_KEY to the judge's key, or OPENAI_BASE_URL to an endpoint of your own"
UNREADABLE_TRIES = 3  # for replies of status 200 that hold no completion
MAX_REPLY = 8 << 20  # bytes of a reply; a judge that thinks aloud over 100,000 tokens sends half a million


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how it is asked.

    `request` holds fields of the request beside model and messages; they go over the protocol's own (temperature,
    max_tokens), and None takes one of those out. `timeout` is in seconds, per try; `retries` is the number of further
    tries of one request that failed; `attempts` the number of replies to one question until one holds a verdict;
    `concurrency` the number of requests at a time.
    """

    model: str
    base_url: str = OPENAI
    request: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    attempts: int = 3
    retries: int = 8
    timeout: float = 120.0
    cache: Path = Path("judge_cache.jsonl")

    def __post_init__(self) -> None:
        """EvaluationError for a setting that cannot be."""
        for name, least in (("concurrency", 1), ("attempts", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise EvaluationError(f"judge: {name} must be at least {least}, not {getattr(self, name)}")
        if not self.timeout > 0:
            raise EvaluationError(f"judge: timeout must be above 0 seconds, not {self.timeout}")
        taken = sorted({"model", "messages", "stream", "n"} & self.request.keys())
        if taken:
            raise EvaluationError(f"judge: {', '.join(taken)} cannot be set in the request's fields")
        try:
            url = urlsplit(self.base_url)
        except ValueError as error:
            raise EvaluationError(f"judge: the base URL cannot be read ({error})") from error
        if url.scheme not in ("http", "https") or not url.hostname:
            raise EvaluationError("judge: the base URL must begin with http:// or https:// and name a host")
        if "@" in url.netloc or url.query:
            raise EvaluationError("judge: the base URL must hold no password and no query; the key is OPENAI_API_KEY")
        object.__setattr__(self, "base_url", urlunsplit(url).rstrip("/"))

    @staticmethod
    def from_environment(**given: Any) -> JudgeSettings:
        """Settings as given (None: not given), else from JUDGE_MODEL, OPENAI_BASE_URL, JUDGE_REQUEST, JUDGE_CACHE, ….

        EvaluationError where no model is named, or a variable cannot be read.
        """
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for name, variable, convert in (
            ("model", "JUDGE_MODEL", str),
            ("base_url", "OPENAI_BASE_URL", str),
            ("request", "JUDGE_REQUEST", json.loads),
            ("concurrency", "JUDGE_CONCURRENCY", int),
            ("cache", "JUDGE_CACHE", Path),
        ):
            said = os.environ.get(variable)
            if name not in values and said:
                try:
                    values[name] = convert(said)
                except ValueError as error:
                    raise EvaluationError(f"{variable}: {said!r} cannot be read ({error})") from error
        if not values.get("model"):
            raise EvaluationError("no judge is named: pass --judge_model, or set JUDGE_MODEL")
        if not isinstance(values.get("request", {}), dict):
            raise EvaluationError("the request's fields (--request, JUDGE_REQUEST) must be a JSON object")
        return JudgeSettings(**{"cache": default_cache(), **values})


def default_cache() -> Path:
    """The user's cache of judgements, shared by all folders and runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "visatb" / "judge.jsonl"


def warn_unless_ready(settings: JudgeSettings) -> None:
    """Say early what asking will fail for; what the cache holds can be scored all the same."""
    if importlib.util.find_spec("openai") is None:
        logger.warning("%s; until then only judgements in %s can be scored", NO_CLIENT, settings.cache)
    if not os.environ.get("OPENAI_API_KEY") and settings.base_url == OPENAI:
        logger.warning("%s; until then only judgements in %s can be scored", NO_KEY, settings.cache)


class JudgeClient:
    """One endpoint, asked from many threads."""

    def __init__(self, settings: JudgeSettings) -> None:
        """EvaluationError where the `openai` package or the key is missing."""
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError as error:
            raise EvaluationError(NO_CLIENT) from error
        self._settings = settings
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not self._key and settings.base_url == OPENAI:
            raise EvaluationError(NO_KEY)
        self._client: OpenAI = OpenAI(
            api_key=self._key or "none",  # servers of one's own ask for none, but the client insists on one
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.retries,
            default_headers={"Accept-Encoding": "identity"},  # a packed reply has any size
            http_client=DefaultHttpxClient(
                timeout=settings.timeout, follow_redirects=False, event_hooks={"response": [_bound(settings.base_url)]}
            ),
        )

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: Messages, request: Mapping[str, Any]) -> Reply:
        """The judge's reply to one request.

        EvaluationError where the endpoint refuses the request for good, or does not answer in the tries it has.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        try:
            return self._ask(messages, request)
        except APIStatusError as error:
            if error.code == "content_filter":
                return Reply(text="", finish_reason="content_filter", refusal=self._hide(error.message))
            reason = _redirect(error.response) or error.message
        except APITimeoutError:
            reason = f"no answer within {self._settings.timeout:g} s"
        except APIConnectionError as error:
            reason = f"connection failed: {error.__cause__ or error}"
        except OpenAIError as error:
            reason = str(error)
        judge = f"{self._settings.model} at {self._settings.base_url}"
        raise EvaluationError(f"the judge ({judge}) gave no answer: {self._hide(reason)[:500]}")

    def _ask(self, messages: Messages, request: Mapping[str, Any]) -> Reply:
        for pause in (*range(1, UNREADABLE_TRIES), None):
            try:
                return _reply(
                    self._client.chat.completions.create(
                        model=self._settings.model,
                        messages=messages,  # type: ignore[arg-type]
                        extra_body=dict(request),
                    )
                )
            except EvaluationError:  # too long, or packed
                raise
            except (ValueError, TypeError, AttributeError, LookupError) as error:  # no JSON, or no completion in it
                if pause is None:
                    what = str(error) if isinstance(error, _NoCompletionError) else type(error).__name__
                    raise EvaluationError(
                        f"the judge at {self._settings.base_url} answers, but not with a chat completion "
                        f"({what}); does the base URL end where /chat/completions begins?"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoCompletionError(ValueError):
    """A field of a completion that is not of its type; the message names it."""


def _reply(completion: Any) -> Reply:
    """The client fills its classes with whatever types the reply holds, so that they are looked at here."""
    choice, usage = completion.choices[0], completion.usage
    finish_reason = _text(choice.finish_reason, "finish_reason")
    refusal = _text(getattr(choice.message, "refusal", None), "refusal")
    if finish_reason == "content_filter":
        refusal = refusal or "content filter"
    return Reply(
        text=_text(choice.message.content, "content") or "",
        finish_reason=finish_reason,
        refusal=refusal or None,
        served_by=_text(completion.model, "model"),
        prompt_tokens=_count(getattr(usage, "prompt_tokens", None), "prompt_tokens"),
        completion_tokens=_count(getattr(usage, "completion_tokens", None), "completion_tokens"),
    )


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _NoCompletionError(f"its {name} is no text but {type(value).__name__}")


def _count(value: Any, name: str) -> int:
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32:
        return value
    raise _NoCompletionError(f"its {name} is no number of tokens")


def _redirect(response: Any) -> str | None:
    """Where a reply points elsewhere: what to do about it."""
    if not 300 <= response.status_code < 400:
        return None
    place = response.headers.get("location", "")[:200]
    return (
        f"it sends us on to {place!r} (status {response.status_code}), and questions and answers go to the named "
        "address alone; if the judge is there, name that (--base_url, OPENAI_BASE_URL)"
    )


def _bound(base_url: str) -> Any:
    """A hook that ends a reply of more than MAX_REPLY bytes with an EvaluationError, while it is being read."""
    from openai import DefaultHttpxClient

    client = next(kind for kind in DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
    library = importlib.import_module(client.__module__.partition(".")[0])  # httpx, or httpx2 with newer clients

    class Bounded(library.SyncByteStream):  # type: ignore[name-defined]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self._stream:
                size += len(chunk)
                if size > MAX_REPLY:
                    raise EvaluationError(f"the judge at {base_url} sends more than {MAX_REPLY >> 20} MiB in one reply")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def hook(response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise EvaluationError(f"the judge at {base_url} packs its replies, which nobody asked for")
        response.stream = Bounded(response.stream)

    return hook
