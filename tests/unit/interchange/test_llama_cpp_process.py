"""llama.cpp in its own process: what goes wrong there becomes one line here, within a time limit."""

from pathlib import Path

import psutil
import pytest

from storyteller_ds.errors import UserError
from storyteller_ds.interchange import llama_cpp_process
from storyteller_ds.interchange.llama_cpp_process import completions

REQUEST = {"prompt": [1], "max_tokens": 1}


@pytest.fixture
def child(tmp_path: Path, monkeypatch):
    """A function that replaces llama.cpp with another program."""

    def replace(program: str) -> None:
        script = tmp_path / "child.py"
        script.write_text(program)
        monkeypatch.setattr(llama_cpp_process, "CHILD", script)

    return replace


def test_one_that_hangs_is_ended(child, tmp_path, capfd):
    child(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    with pytest.raises(UserError, match=r"did not read model\.gguf in 5 s, and was ended"):
        completions(Path("model.gguf"), 80, [REQUEST], seconds=5)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert capfd.readouterr() == ("", "")


def test_one_that_aborts_is_one_line(child, capfd):
    child(
        "import os, sys\n"
        "print('llama_model_loader: loaded', flush=True)\n"
        "print('load_tensors: 1\\nggml.c:7: GGML_ASSERT(n > 0) failed', file=sys.stderr, flush=True)\n"
        "os.abort()"
    )
    with pytest.raises(UserError) as refused:
        completions(Path("model.gguf"), 80, [REQUEST])
    assert str(refused.value) == "llama.cpp could not read model.gguf (signal 6): ggml.c:7: GGML_ASSERT(n > 0) failed"
    assert capfd.readouterr() == ("", "")


def test_what_it_writes_does_not_mix_with_its_answer(child, capfd):
    child(
        "import json, os, sys\n"
        "print('noise ' * 100_000, file=sys.stderr)\n"
        "task = json.load(sys.stdin)\n"
        "print(json.dumps([{'choices': [{'text': task['requests'][0]['prompt']}], 'timings': {'prompt_ms': 3}}]))"
    )
    found = completions(Path("model.gguf"), 80, [{"prompt": "x"}])
    assert found == [{"text": "x", "timings": {"prompt_ms": 3}}]
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_none_is_one_line(tmp_path, capfd):
    pytest.importorskip("xllamacpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"^llama\.cpp could not read model\.gguf \((exit code|signal) \d+\): ."):
        completions(tmp_path / "model.gguf", 80, [REQUEST], seconds=60)
    assert capfd.readouterr() == ("", "")
