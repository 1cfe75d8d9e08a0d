"""Tokenizers that are not trained here: GPT-2's, llama2.c's, and arbitrary ones."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from storyteller_ds.config.data import TokenizerConfig
from storyteller_ds.data.tokenizers import gpt2
from storyteller_ds.data.tokenizers.choose import given_tokenizer, open_tokenizer
from storyteller_ds.data.tokenizers.tokenizer import END_OF_TEXT
from storyteller_ds.errors import DataError
from tests.unit.data.tokenizers.test_scored import encode_as_run_c, read_file
from tests.unit.data.tokenizers.test_trained import bpe

UNREACHABLE_SECONDS = 15


def given(**fields: object) -> TokenizerConfig:
    return TokenizerConfig.model_validate(fields)


def stories_of(shared_folder: Path) -> str:
    return (shared_folder / "data" / "tinystories_val.txt").read_text(encoding="utf-8")


def test_gpt2_makes_the_ids_of_transformers(shared_folder):
    transformers = pytest.importorskip("transformers")
    folder = shared_folder / "data" / "gpt2"
    theirs = transformers.GPT2Tokenizer(vocab=str(folder / "gpt2_vocab.json"), merges=str(folder / "gpt2_merges.txt"))
    ours = given_tokenizer(given(kind="gpt2", vocab_size=50257, path=str(folder)), None)
    assert ours is not None
    assert (ours.vocab_size, ours.end_of_text, ours.spells_bytes) == (50257, 50256, True)
    text = stories_of(shared_folder)
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert len(ids) > 100_000
    paragraphs = text.split("\n\n")
    assert ours.encode_batch(paragraphs) == [theirs(each)["input_ids"] for each in paragraphs]
    assert ours.encode("Hello world") == [15496, 995]  # as its documentation says


def test_llama2c_makes_the_ids_of_run_c(shared_folder):
    path = shared_folder / "models" / "tok512.bin"
    ours = given_tokenizer(given(kind="llama2c", vocab_size=512, path=str(path)), None)
    assert ours is not None
    tokens = read_file(path)
    for story in stories_of(shared_folder).split("\n\n")[:60]:
        assert ours.encode(story) == encode_as_run_c(story, tokens)


def test_a_folder_of_a_run_is_a_tokenizer_too(tmp_path):
    (tmp_path / "tokenizer.json").write_text(bpe().to_json(), encoding="utf-8")
    assert open_tokenizer(tmp_path).fingerprint == open_tokenizer(tmp_path / "tokenizer.json").fingerprint


def small_gpt2(folder: Path, **changes: object) -> Path:
    """A folder of GPT-2 files with the 256 bytes, two merges and END_OF_TEXT; `changes` replace file contents."""
    folder.mkdir(exist_ok=True)
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", END_OF_TEXT]
    vocabulary = {"vocab": {name: i for i, name in enumerate(names)}, "merges": "#version: 0.2\na b\nab c\n", **changes}
    content = vocabulary["vocab"]
    (folder / "vocab.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text(str(vocabulary["merges"]), encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("version", ["#version: 0.2", None])
def test_small_files_of_its_kind(version, ends, tmp_path):
    lines = [*([version] if version else []), "a b", "ab c"]
    tokenizer = open_tokenizer(small_gpt2(tmp_path / "x", merges=ends.join(lines)))
    assert tokenizer.encode("abcab c") == [257, 256, *tokenizer.encode(" "), *tokenizer.encode("c")]


def vocabulary_with(**changes: object) -> dict[str, object]:
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", END_OF_TEXT]
    return {**{name: i for i, name in enumerate(names)}, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": "{"}, r"vocab\.json: Expecting property name"),
        ({"vocab": '{"a": 1, "a": 2}'}, "the key 'a' is given twice"),
        ({"vocab": "[1]"}, "not an object of tokens and their ids"),
        ({"vocab": vocabulary_with(ab="7")}, "not an object of tokens and their ids"),
        ({"vocab": vocabulary_with(ab=True)}, "not an object of tokens and their ids"),
        ({"vocab": vocabulary_with(ab=5)}, "the ids are not 0 to 258, each once"),
        ({"vocab": vocabulary_with(ab=10**12)}, "the ids are not 0 to 258, each once"),
        ({"vocab": {"a": 0, "b": 1}}, "of the 256 bytes and <.endoftext.> are missing"),
        ({"merges": "a b\na z"}, r"merges\.txt: line 2, 'a z', is not a merge"),
        ({"merges": "a b\nabc"}, "line 2, 'abc', is not a merge"),
        ({"merges": "a b c"}, "line 1, 'a b c', is not a merge"),
    ],
)
def test_broken_files_are_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        open_tokenizer(small_gpt2(tmp_path / "x", **changes))
    assert "\n" not in str(caught.value)


def test_missing_and_doubled_files(tmp_path):
    with pytest.raises(DataError, match=r"has no vocab\.json, and one vocab\.json and one merges\.txt make"):
        open_tokenizer(tmp_path)
    folder = small_gpt2(tmp_path / "x")
    (folder / "old_vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"has old_vocab\.json, vocab\.json, and one"):
        open_tokenizer(folder)
    (folder / "old_vocab.json").unlink()
    (folder / "merges.txt").unlink()
    (folder / "merges.txt").mkdir()
    with pytest.raises(DataError, match=r"merges\.txt.*(regular file|directory)"):
        open_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "tokens 3 to 258 are not the bytes"),
        (struct.pack("<IfI", 4, 0.0, 10**9), "token 0 would have 1,000,000,000 bytes, and 256 are the most"),
        (struct.pack("<IfI", 4, 0.0, 3) + b"a", "it ends within token 0"),
        (struct.pack("<IfI", 4, 0.0, 2) + b"\xff\xff", "token 0 is not UTF-8"),
    ],
)
def test_a_broken_tokenizer_bin_is_refused(content, message, tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        given_tokenizer(given(kind="llama2c", vocab_size=512, path=str(path)), None)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"kind=llama2c is read from a file; add tokenizer\.path="):
        given_tokenizer(given(kind="llama2c"), None)
    folder = str(small_gpt2(tmp_path / "x"))
    with pytest.raises(DataError, match=r"has 259 tokens, more than tokenizer\.vocab_size=200; raise .* to 259"):
        given_tokenizer(given(kind="gpt2", vocab_size=200, path=folder), None)
    with pytest.raises(DataError, match=r"has no special token <.im_end.>, which tokenizer\.special_tokens lists"):
        given_tokenizer(given(kind="gpt2", path=folder, special_tokens=("<|im_end|>",)), None)
    assert given_tokenizer(given(kind="bpe"), None) is None


def test_a_tokenizer_that_makes_the_separator_of_text_is_refused(tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, END_OF_TEXT: 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    with pytest.raises(DataError, match="of text that spells it, so that a story could end itself"):
        given_tokenizer(given(path=str(tmp_path)), None)


FETCH = """
import sys
from pathlib import Path
from storyteller_ds.data.tokenizers import gpt2
from storyteller_ds.errors import DataError
try:
    print(gpt2.from_hub(Path(sys.argv[1])).encode("abcab"))
except DataError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def fetch(cache: Path, home: Path, endpoint: str) -> tuple[int, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if name in os.environ}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(cache)],
        env=kept | settings | {"PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture
def hub(tmp_path) -> Iterator[tuple[str, list[str]]]:
    """A server that has the two files at the commit, and the list of paths requested from it."""
    import hashlib
    from http.server import BaseHTTPRequestHandler

    folder, asked = small_gpt2(tmp_path / "remote"), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body, headers = b"", {}
            if self.path.startswith(f"/api/models/{gpt2.REPOSITORY}/revision/{gpt2.COMMIT}"):
                body = json.dumps({"id": gpt2.REPOSITORY, "sha": gpt2.COMMIT, "siblings": []}).encode()
            elif self.path.startswith(f"/{gpt2.REPOSITORY}/resolve/{gpt2.COMMIT}/"):
                body = (folder / self.path.rpartition("/")[2]).read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": gpt2.COMMIT}
            self.send_response(200 if body else 404)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_gpt2_comes_from_the_hub_once_and_then_needs_no_network(hub, tmp_path):
    endpoint, asked = hub
    first = fetch(tmp_path / "cache", tmp_path / "home", endpoint)
    assert first == (0, "[257, 256]\n")
    assert any(path.endswith(f"resolve/{gpt2.COMMIT}/merges.txt") for path in asked)
    count = len(asked)
    assert fetch(tmp_path / "cache", tmp_path / "home", "http://127.0.0.1:9") == first
    assert len(asked) == count


def test_without_a_network_it_says_so_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections but never answers
        start = time.monotonic()
        code, line = fetch(tmp_path / "cache", tmp_path / "home", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < UNREACHABLE_SECONDS
    assert code == 2
    assert line.count("\n") == 1
    for part in ("openai-community/gpt2", "tokenizer.path=FOLDER", "tokenizer.kind=bpe"):
        assert part in line
    assert not list((tmp_path / "cache").rglob("vocab.json"))
