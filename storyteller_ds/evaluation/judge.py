"""A model that grades stories, behind any endpoint compatible with OpenAI's /v1/chat/completions."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from storyteller_ds.errors import UserError
from storyteller_ds.evaluation.grades import Grades, grades_in, question
from storyteller_ds.evaluation.text import Log
from storyteller_ds.evaluation.told_stories import Told
from storyteller_ds.meanwhile import LINE_EVERY_S, meanwhile
from storyteller_ds.redaction import redacted
from storyteller_ds.untrusted import UntrustedFileError, parse_json

KEY = "STORYTELLER_JUDGE_KEY"
"""Environment variable with the endpoint's key. Not a service's own, whose key would be sent to any URL given."""
MOST_FAILURES = 3
"""After this many failures in a row, no more stories are sent."""
_ANSWER_BYTES = 1 << 20
_PIECE = 1 << 14


@dataclass(frozen=True)
class Judged:
    """What a judge said about several stories."""

    grammar: float | None
    """Mean grade (0 to 10); None if no story was graded."""
    creativity: float | None
    consistency: float | None
    graded: int
    """Stories with usable grades."""
    stories: int
    first_problem: str | None
    """Why the first story without grades has none; None if all have grades."""


class JudgeError(Exception):
    """There was no answer, or no usable one; the message says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, so that no other host gets the key."""

    def redirect_request(self, *arguments: Any) -> None:
        """Called by urllib, which then raises HTTPError."""


class Judge:
    """Grades stories.

    Args:
        url: the endpoint; `http://localhost:8000/v1` is enough.
        model: its name at the endpoint.
        timeout_s: longest wait for one answer (seconds).

    Raises:
        UserError: the URL is invalid, or contains a user name or a query.
    """

    def __init__(self, url: str, model: str, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--judge_url {url} is not an address; give one as http://localhost:8000/v1")
        if parts.username is not None or parts.query:
            raise UserError(f"--judge_url has a name or a query in it; give the key in the variable {KEY}")
        base = url.rstrip("/").removesuffix("/chat/completions")
        self._url = f"{base if parts.path.strip('/') else f'{base}/v1'}/chat/completions"
        self._model, self._timeout_s = model, timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)

    def judge(self, stories: Sequence[Told], log: Log) -> Judged:
        """Grade each story; a failure does not affect the others, but MOST_FAILURES in a row end the grading."""
        grades: list[Grades] = []
        problem, in_a_row, sent = None, 0, 0
        with meanwhile(lambda: log(f"judging stories: {sent} of {len(stories)}"), LINE_EVERY_S):
            for story in stories:
                if in_a_row == MOST_FAILURES:
                    break
                sent += 1
                try:
                    grades.append(self.grade(story))
                    in_a_row = 0
                except JudgeError as error:
                    problem, in_a_row = problem or redacted(str(error)), in_a_row + 1
        return Judged(
            grammar=_mean([each.grammar for each in grades]),
            creativity=_mean([each.creativity for each in grades]),
            consistency=_mean([each.consistency for each in grades]),
            graded=len(grades),
            stories=len(stories),
            first_problem=problem,
        )

    def grade(self, story: Told) -> Grades:
        """The grades of a story.

        Raises:
            JudgeError: there was no usable answer.
        """
        answer = self._answer(question(story.prompt, story.continuation))
        grades = grades_in(answer)
        if grades is None:
            raise JudgeError(f"no grades in the answer {answer[:80]!r}")
        return grades

    def _answer(self, prompt: str) -> str:
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self._timeout_s
        content = b""
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                # The socket's timeout applies to each read, so a slow server could keep sending forever.
                while piece := response.read1(_PIECE):
                    content += piece
                    if len(content) > _ANSWER_BYTES:
                        raise JudgeError(f"its answer has more than {_ANSWER_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except urllib.error.HTTPError as error:
            error.close()
            raise JudgeError(f"{self._url} answers {error.code} {error.reason}") from None
        except TimeoutError:
            raise JudgeError(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, HTTPException, ValueError) as error:  # ValueError: the key is not a valid header value
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise JudgeError(f"no answer within {self._timeout_s:g} s") from None
            raise JudgeError(f"{self._url} cannot be reached ({type(reason).__name__}: {reason})") from None
        return _text_of(content)


def _text_of(content: bytes) -> str:
    """The model's text in the endpoint's JSON response."""
    try:
        text = parse_json(content.decode(), "its answer")["choices"][0]["message"]["content"]
    except (UntrustedFileError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise JudgeError(f"its answer is not that of a chat endpoint ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise JudgeError("its answer has no text")
    return text


def _mean(grades: Sequence[float]) -> float | None:
    return sum(grades) / len(grades) if grades else None
