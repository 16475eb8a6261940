"""Questions to a judge in, verdicts out: what is cached, what must be asked, what it will cost, and the asking."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from eval.errors import EvaluationError
from eval.judge_cache import Messages, Reply, ReplyCache, request_key
from eval.judge_client import JudgeClient, JudgeSettings, warn_unless_ready

logger = logging.getLogger(__name__)

Verdict = tuple[float, ...]
ReadVerdict = Callable[[Reply], Verdict | None]
RETRY_TEMPERATURE = 0.5  # a judge at temperature 0 would give the same unreadable verdict again
_SORRY = re.compile(
    r"\W*(?:unfortunately\b|as an ai\b|(?:i'm|i am) (?:very )?sorry\b|sorry\b|"
    r"i (?:can't|cannot|can not|won't|am unable|am not able)|i'm (?:unable|not able))",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W\d_]{1,7}|\d{1,3}|[^\w\s]|_")


@dataclass(frozen=True)
class Question:
    """One request to the judge; `name` says in errors what it is about."""

    name: str
    messages: Messages


@dataclass(frozen=True)
class Judgement:
    """What came of a question: a verdict, or None where the judge refused or gave none that can be read."""

    verdict: Verdict | None
    refused: bool
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Estimate:
    """What judging will take. Input tokens are estimated from the text; `output_tokens` is the limit, None if none."""

    questions: int
    requests: int
    input_tokens: int
    output_tokens: int | None

    def text(self, price: tuple[float, float] | None = None) -> str:
        """In words; `price` is in dollars for a million input and a million output tokens."""
        known = self.questions - self.requests
        lines = [f"{self.questions} questions: {known} answered already or twice in the file, {self.requests} requests"]
        limit = "without limit" if self.output_tokens is None else f"at most {self.output_tokens:,} out"
        lines.append(f"tokens: about {self.input_tokens:,} in, {limit}")
        if price:
            low = self.input_tokens * price[0] / 1e6
            most = "" if self.output_tokens is None else f" to {low + self.output_tokens * price[1] / 1e6:.2f}"
            lines.append(f"price: {low:.2f}{most} dollars, and more for each verdict that must be asked for again")
        return "\n".join(lines)


class Panel:
    """One judge with its settings, its cache, and a way to read its verdicts."""

    def __init__(self, settings: JudgeSettings, request: Mapping[str, Any], read: ReadVerdict) -> None:
        """`request` holds the protocol's own fields (temperature, max_tokens), which the settings' go over."""
        self.settings = settings
        merged = {**request, **settings.request}
        self.request = {name: value for name, value in merged.items() if value is not None}
        self._read = read
        warn_unless_ready(settings)

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """What judging the questions will take, beyond what the cache holds."""
        cache = ReplyCache(self.settings.cache)
        return self._estimate(len(questions), self._open(cache, questions))

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question; only what the cache lacks is asked.

        EvaluationError where the endpoint fails; what it answered until then is kept.
        """
        cache = ReplyCache(self.settings.cache)
        if self._open(cache, questions):
            with cache:
                open_questions = self._open(cache, questions)  # another process may have asked them meanwhile
                if open_questions:
                    logger.info("%s", self._estimate(len(questions), open_questions).text())
                    self._ask_all(cache, open_questions)
        judgements = [self._settle(cache.replies(self._key(question))) for question in questions]
        return [judgement for judgement in judgements if judgement]

    def _key(self, question: Question) -> str:
        return request_key(self.settings.base_url, self.settings.model, self.request, question.messages)

    def _open(self, cache: ReplyCache, questions: Sequence[Question]) -> dict[str, Question]:
        """The questions that still need the judge, by request key: the same request is made once."""
        keyed = {self._key(question): question for question in questions}
        return {key: question for key, question in keyed.items() if self._settle(cache.replies(key)) is None}

    def _estimate(self, total: int, open_questions: Mapping[str, Question]) -> Estimate:
        texts = [message["content"] for question in open_questions.values() for message in question.messages]
        limit = self.request.get("max_completion_tokens", self.request.get("max_tokens"))
        requests = len(open_questions)
        tokens = sum(count_tokens(text) + 4 for text in texts)
        return Estimate(total, requests, tokens, requests * limit if isinstance(limit, int) else None)

    def _settle(self, replies: Sequence[Reply]) -> Judgement | None:
        """What came of a question, from its replies so far; None where it must be asked (again)."""
        for reply in replies:
            if reply.refusal:  # said by the endpoint itself: asking again would not change its mind
                return Judgement(None, True, tuple(replies))
            verdict = self._read(reply)
            if verdict is not None:
                return Judgement(verdict, False, tuple(replies))
        if len(replies) < self.settings.attempts:
            return None
        return Judgement(None, says_no(replies[-1].text), tuple(replies))

    def _ask_all(self, cache: ReplyCache, questions: Mapping[str, Question]) -> None:
        workers = min(self.settings.concurrency, len(questions))
        with JudgeClient(self.settings) as client, ThreadPoolExecutor(workers, "judge") as pool:
            futures = {
                pool.submit(self._ask, cache, client, key, question): question for key, question in questions.items()
            }
            try:
                for future in tqdm(as_completed(futures), "judging", len(futures), disable=None):
                    question = futures[future]
                    future.result()
            except EvaluationError as error:
                done = sum(self._settle(cache.replies(key)) is not None for key in questions)
                raise EvaluationError(
                    f"{question.name}: {error}. {done} of {len(questions)} judgements of this run are kept in "
                    f"{cache.path}; run the command again to go on"
                ) from error
            finally:  # after an error or Ctrl-C: what is on its way still comes and is kept, nothing more is sent
                pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, cache: ReplyCache, client: JudgeClient, key: str, question: Question) -> None:
        while self._settle(replies := cache.replies(key)) is None:
            request = dict(self.request)
            if replies and "temperature" in request:
                request["temperature"] = max(request["temperature"], RETRY_TEMPERATURE)
            reply = client.ask(question.messages, request)
            told = {"base_url": self.settings.base_url, "model": self.settings.model, **request}
            cache.add(key, reply, {**told, "messages": question.messages})


def says_no(text: str) -> bool:
    """Whether a reply without a verdict reads as a refusal."""
    return bool(_SORRY.match(text.replace("’", "'")))


def count_tokens(text: str) -> int:
    """About the number of tokens: pieces of words up to 7 letters, up to 3 digits, and each other sign."""
    return len(_TOKEN.findall(text))
