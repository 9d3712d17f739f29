"""The client of an OpenAI-compatible server (vLLM and others): chat completions, images as data URLs, requests in parallel.

429, 5xx, a connection that fails and an answer that is not what it should be are tried again, with growing pauses; any other refusal
ends the run in one line. The key comes from the environment variable OPENAI_API_KEY alone, and is written nowhere.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from harness.api import HarnessError

from .answers import MOST, Answer, Question

LONGEST_PAUSE = 30.0
LONGEST_REPLY = 1 << 24
"""Bytes; 128 tokens of an answer have some thousands."""
TOP = 20
"""Alternatives a server is asked for; yes and no beyond them count as probability 0."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: it is an error."""


class _Again(Exception):  # noqa: N818 - not an error yet
    """A fault that may pass; `pause`: what the server asks to wait, in seconds."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class Server:
    """Answers of a served model. What weights it serves is not known here: the identity is its address and name."""

    def __init__(self, url: str, model: str, max_tokens: int, parallel: int, timeout: float, retries: int) -> None:
        try:
            parts = urlsplit(url)
            bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or not _plain(url)
        except ValueError:  # a port that is no number, brackets that do not close
            bad = True
        if bad:
            raise HarnessError(f"bad server {url!r} of prompt; write server=http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise HarnessError("the server of prompt takes no password or query in its address; set OPENAI_API_KEY instead")
        if not _plain(os.environ.get("OPENAI_API_KEY", "")):
            raise HarnessError("OPENAI_API_KEY has a space, a line break or a sign that is not ASCII; set it to the key alone")
        self.url, self.model = url.rstrip("/"), model
        self.max_tokens, self.parallel, self.timeout, self.retries = max_tokens, parallel, timeout, retries
        self.identity: Mapping[str, Any] = {"model": model, "revision": "served: unknown", "server": self.url}
        self.pause = 1.0
        self._stopped = Event()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def answer(self, questions: list[Question]) -> Iterator[Mapping[str, Answer]]:
        """Key -> answer as they come; after a failure no more are sent, and those that came are given first."""
        self._stopped.clear()
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                yield from self._answers(pool, iter(questions))
            finally:
                self._stopped.set()  # whatever ends this, nobody sits out a pause

    def _answers(self, pool: ThreadPoolExecutor, waiting: Iterator[Question]) -> Iterator[Mapping[str, Answer]]:
        running: dict[Future[Answer], str] = {}
        failed: BaseException | None = None
        while True:
            if failed is None:
                more = islice(waiting, self.parallel - len(running))
                running.update({pool.submit(self._one, question): question.key for question in more})
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            keys = {future: running.pop(future) for future in done}
            errors = [error for future in done if (error := future.exception()) is not None]
            answers = {key: future.result() for future, key in keys.items() if future.exception() is None}
            if errors and failed is None:
                failed = errors[0]
                self._stopped.set()
            if answers:
                yield answers
        if failed is not None:
            raise failed

    def _one(self, question: Question) -> Answer:
        body = json.dumps(self._body(question)).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._read(self._post(body), question)
            except _Again as fault:
                if attempt == self.retries:
                    raise HarnessError(
                        f"server {self.url} failed {attempt + 1} times, the last time with: {fault}; the answers so far are kept, run "
                        f"the same command to go on"
                    ) from None
                pause = self.pause * 2**attempt if fault.pause is None else fault.pause
                if self._stopped.wait(min(pause, LONGEST_PAUSE)):
                    break
        raise HarnessError(
            f"server {self.url} is no longer asked, since another question failed; run the same command to go on"
        )

    def _body(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": _data_url(question.image)}},
                {"type": "text", "text": question.text},
            ]
        logit = question.kind == "logit"
        how = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP} if logit else {"max_tokens": self.max_tokens}
        return {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, **how}

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)  # noqa: S310 - http or https, checked
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                said = response.read(LONGEST_REPLY + 1)
            if len(said) > LONGEST_REPLY:
                raise _Again(f"an answer of more than {LONGEST_REPLY >> 20} MB")
            return json.loads(said)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            raise _Again(_shown(f"{type(error).__name__}: {getattr(error, 'reason', error)}")) from error
        except (ValueError, RecursionError) as error:
            raise _Again("an answer that is not JSON") from error

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 429 or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            raise _Again(f"HTTP {error.code}", float(asked) if asked.isdecimal() else None)
        try:
            words = _shown(error.read(2000).decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException):
            words = ""
        hint = (
            "set OPENAI_API_KEY" if error.code in (401, 403) else "check the address, which ends in /v1, and the model's name"
        )
        raise HarnessError(f"server {self.url} refused a question for {self.model!r}: HTTP {error.code} {words}; {hint}")

    def _read(self, reply: Any, question: Question) -> Answer:
        try:
            choice = reply["choices"][0]
            if question.kind == "generate":
                return {"text": str(choice["message"]["content"] or ""), "cut": choice.get("finish_reason") == "length"}
            found = choice.get("logprobs")
            tops = None if found is None else found["content"][0]["top_logprobs"]
            if tops:
                return _yes_no({str(top["token"]): float(top["logprob"]) for top in tops})
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise _Again(
                f"an answer without {error}" if isinstance(error, KeyError) else "an answer of another form"
            ) from error
        raise HarnessError(f"server {self.url} gives no logprobs for {self.model!r}; use answers=generate (prompt-generate)")


def _yes_no(tops: Mapping[str, float]) -> Answer:
    total = {word: sum(math.exp(p) for token, p in tops.items() if token.strip().lower() == word) for word in ("yes", "no")}
    if not all(p <= MOST for p in total.values()):  # NaN is not
        raise ValueError("a probability is none")
    return total


def _plain(text: str) -> bool:
    return all("!" <= letter <= "~" for letter in text)


def _shown(words: str) -> str:
    """A server's words in one line for the terminal, without the key it may repeat."""
    key = os.environ.get("OPENAI_API_KEY")
    words = " ".join((words.replace(key, "...") if key else words).split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:300]


def _data_url(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
