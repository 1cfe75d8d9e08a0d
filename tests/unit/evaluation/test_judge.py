"""A judge behind a fake endpoint on this machine: answers, errors, silence and garbage."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.evaluation.judge import KEY, MOST_FAILURES, Judge
from storyteller_ds.evaluation.told_stories import Told
from tests.support.fake_judge import GOOD, FakeEndpoint, says, sends

STORIES = [Told("Once", f" there was fox {i}.", ended=True) for i in range(5)]


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    server = FakeEndpoint()
    yield server
    server.close()


def judged(endpoint: FakeEndpoint, stories: list[Told] = STORIES, timeout_s: float = 30.0):
    return Judge(endpoint.url, "a model", timeout_s).judge(stories, lambda line: None)


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/chat/completions"], ids=["base", "with a slash", "all of it"])
def test_what_is_asked_and_what_is_made_of_the_answers(endpoint, url, monkeypatch):
    monkeypatch.setenv(KEY, "k-123")
    found = Judge(url.format(endpoint.url), "a model").judge(STORIES, lambda line: None)
    assert (found.grammar, found.creativity, found.consistency) == (8, 6, 4)
    assert (found.graded, found.stories, found.first_problem) == (5, 5, None)
    assert len(endpoint.requests) == 5
    for story, (path, headers, body) in zip(STORIES, endpoint.requests, strict=True):
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == "Bearer k-123"
        assert (body["model"], body["temperature"]) == ("a model", 0)
        assert story.continuation in body["messages"][0]["content"]


def test_an_address_alone_gets_the_usual_path_and_no_key_is_sent_without_one(endpoint, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    Judge(endpoint.url.removesuffix("/v1"), "m").grade(STORIES[0])
    path, headers, _ = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers


def test_the_mean_is_over_the_stories_that_were_graded(endpoint):
    good, bad = says(GOOD), says("no idea")
    other = says('{"grammar": 2, "creativity": 2, "consistency": 2}')
    endpoint.answer = lambda handler, number: [good, bad, other, bad, good][number - 1](handler, number)
    found = judged(endpoint)
    assert found.grammar == 6
    assert (found.graded, found.stories) == (3, 5)
    assert found.first_problem == "no grades in the answer 'no idea'"


GARBAGE = {
    "no JSON": sends(b"<html>"),
    "no UTF-8": sends(b"\xff\xfe"),
    "empty": sends(b""),
    "another object": sends(b'{"error": "no such model"}'),
    "no choices": sends(b'{"choices": []}'),
    "no text": says(None),
    "a list": sends(b"[1, 2]"),
    "nested": sends(b"[" * 100_000),
    "an error of the server": sends(b"oops", 500),
    "too many requests": sends(b"", 429),
    "not allowed": sends(b"{}", 401),
    "too long": sends(b" " * (1 << 20) + b"{}"),
    "cut off": sends(b'{"choices": [{"mess', **{"Content-Length": "1000"}),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_costs_its_story_and_after_some_nothing_more_is_sent(endpoint, kind):
    endpoint.answer = GARBAGE[kind]
    found = judged(endpoint)
    assert (found.grammar, found.graded, found.stories) == (None, 0, 5)
    assert found.first_problem
    assert "\n" not in found.first_problem
    assert len(endpoint.requests) == MOST_FAILURES


def test_the_key_goes_to_no_other_host(endpoint, monkeypatch):
    monkeypatch.setenv(KEY, "k-123")
    other = FakeEndpoint()
    try:
        endpoint.answer = sends(b"", 302, Location=f"{other.url}/chat/completions")
        found = judged(endpoint, STORIES[:1])
        assert found.first_problem is not None
        assert "302" in found.first_problem
        assert other.requests == []
    finally:
        other.close()


def test_an_answer_with_the_key_does_not_show_it(endpoint, monkeypatch):
    monkeypatch.setenv(KEY, "secret-key-123")
    endpoint.answer = says("your key is secret-key-123")
    found = judged(endpoint, STORIES[:1])
    assert found.first_problem is not None
    assert "secret-key-123" not in found.first_problem


def test_silence_ends(endpoint):
    endpoint.answer = lambda handler, number: endpoint.over.wait(30)
    found = judged(endpoint, STORIES[:1], timeout_s=0.2)
    assert found.first_problem == "no answer within 0.2 s"


def test_a_trickle_ends(endpoint):
    def trickle(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not endpoint.over.wait(0.02):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:  # the client has hung up
            pass

    endpoint.answer = trickle
    assert judged(endpoint, STORIES[:1], timeout_s=0.3).first_problem == "no answer within 0.3 s"


def test_nobody_there():
    server = FakeEndpoint()
    server.close()
    found = Judge(server.url, "m", 5).judge(STORIES, lambda line: None)
    assert found.graded == 0
    assert found.first_problem is not None
    assert "cannot be reached" in found.first_problem


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://localhost/v1", "file:///etc/passwd", "http://", "http://me:pw@host/v1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError, match="--judge_url"):
        Judge(url, "m")


def test_no_stories(endpoint):
    found = judged(endpoint, [])
    assert (found.grammar, found.graded, found.stories, found.first_problem) == (None, 0, 0, None)
    assert endpoint.requests == []
