"""llama2.c's files, written and read, compared with a plain reader of them and its forward pass in fp64."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from storyteller_ds import load
from storyteller_ds.checkpoint import write
from storyteller_ds.checkpoint.names import step_folder_name
from storyteller_ds.cli.export import export
from storyteller_ds.cli.importing import import_
from storyteller_ds.config.run import RunConfig
from storyteller_ds.data.tokenizers.tokenizer import Tokenizer
from storyteller_ds.errors import UserError
from storyteller_ds.generation.decode import generate_ids, prompt_ids
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.llama2c.model_file import check_config, quantize, read_model, write_model
from storyteller_ds.interchange.llama_cpp_process import completions
from storyteller_ds.model.canonical import placed_parameters
from tests.support import run_c
from tests.unit.data.tokenizers.test_scored import small_tokens, tokenizer_of
from tests.unit.interchange.test_huggingface import story_model

VOCABULARY = 300
IDS = [1, 262, 259, 7, 299, 280, 281, 282, 2, 260, 261, 270]
SIZES = {"hidden_size": 32, "intermediate_size": 48}
MODELS: dict[str, dict[str, Any]] = {"tied": {}, "untied, grouped": {"tie_embeddings": False, "num_kv_heads": 2}}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = [(chr(code), -50.0 - code) for code in range(ord("A"), ord("A") + 38)]
    return tokenizer_of(small_tokens((" ", -9.0), *letters, ("AB", -1.0), ("CD", -2.0)))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {placed.name: placed.parameter.detach() for placed in placed_parameters(model)}


def our_logits(decoder: Any) -> np.ndarray:
    with torch.no_grad():
        return decoder(torch.tensor([IDS]))[0][0].numpy()


def call(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(params=MODELS, ids=MODELS)
def model(request, tokenizer, tmp_path) -> StoryModel:
    made = story_model(tokenizer, MODELS[request.param], {"num_experts": 0}, tmp_path)
    assert made.run.tokenizer.vocab_size == VOCABULARY
    return made


def test_fp32_is_what_run_c_reads_and_comes_back_as_the_same_bits(model, tmp_path):
    path = tmp_path / "model.bin"
    write_model(model.run, weights_of(model.decoder), path, "fp32")
    assert np.abs(run_c.logits(path, IDS) - our_logits(model.decoder)).max() < 1e-4
    _, weights = run_c.read(path)
    angle = np.outer(np.arange(80), 10_000.0 ** (-np.arange(0, 8, 2) / 8))
    assert weights["cos"] == pytest.approx(np.cos(angle), abs=1e-5)
    assert weights["sin"] == pytest.approx(np.sin(angle), abs=1e-5)
    run, decoder = read_model(path)
    assert run.context_length == model.run.context_length
    again = weights_of(decoder)
    for name, tensor in weights_of(model.decoder).items():
        assert torch.equal(again[name], tensor), name


def test_negative_control_rows_as_ours_lie_compute_something_else(model, tmp_path, monkeypatch):
    from storyteller_ds.interchange.llama2c import model_file

    monkeypatch.setattr(model_file, "with_neighbors", lambda weight, heads: weight)
    write_model(model.run, weights_of(model.decoder), tmp_path / "model.bin", "fp32")
    assert np.abs(run_c.logits(tmp_path / "model.bin", IDS) - our_logits(model.decoder)).max() > 0.1


def test_int8_is_what_runq_c_reads_and_comes_back_as_it_was_written(model, tmp_path):
    path = tmp_path / "model.bin"
    write_model(model.run, weights_of(model.decoder), path, "q8_0")
    sizes, _ = run_c.read(path)
    assert (sizes["version"], sizes["group"]) == (2, 16)  # the largest power of two that divides 32 and 48
    _, decoder = read_model(path)
    again = weights_of(decoder)
    assert np.abs(run_c.logits(path, IDS) - our_logits(decoder)).max() < 1e-4
    for name, tensor in weights_of(model.decoder).items():
        if tensor.dim() == 1:
            assert torch.equal(again[name], tensor), name
        else:  # within half a step of the scale
            step = tensor.reshape(-1, 16).abs().amax(dim=1, keepdim=True) / 127
            if not name.endswith(("q_proj.weight", "k_proj.weight")):  # their rows are in another order
                assert bool(((again[name] - tensor).reshape(-1, 16).abs() <= 0.5001 * step).all()), name
            assert not torch.equal(again[name], tensor)


def test_a_group_of_zeros_stays_zero():
    numbers, scale = quantize(torch.tensor([[0.0, 0.0, 1.0, -2.0]]), 2)
    assert numbers.tolist() == [[0, 0], [64, -127]]
    assert scale.tolist() == [[0.0], [pytest.approx(2 / 127)]]


def as_version_1(path: Path) -> bytes:
    """The content of a version 0 file, with the header and the order of version 1."""
    content = path.read_bytes()
    numbers = list(struct.unpack_from("<7i", content))
    tied = numbers[5] > 0
    numbers[5] = abs(numbers[5])
    _, w = run_c.read(path)
    order = ["att_norm", "ffn_norm", "norm", "embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]
    head = struct.pack("<Ii7i?", 0x616B3432, 1, *numbers, tied)
    return head.ljust(256, b"\0") + b"".join(w[name].tobytes() for name in order + ["output"] * (not tied))


def test_version_1_is_read_too(model, tmp_path):
    write_model(model.run, weights_of(model.decoder), tmp_path / "0.bin", "fp32")
    (tmp_path / "1.bin").write_bytes(as_version_1(tmp_path / "0.bin"))
    again = weights_of(read_model(tmp_path / "1.bin")[1])
    for name, tensor in weights_of(model.decoder).items():
        assert torch.equal(again[name], tensor), name


@pytest.fixture
def files(tokenizer, tmp_path) -> Path:
    """A folder with model.bin and tokenizer.bin."""
    from storyteller_ds.data.tokenizers.llama2c import write_tokenizer
    from storyteller_ds.data.tokenizers.scored import scored_tokens

    folder = tmp_path / "files"
    folder.mkdir()
    made = story_model(tokenizer, {}, {"num_experts": 0}, tmp_path)
    write_model(made.run, weights_of(made.decoder), folder / "model.bin", "fp32")
    write_tokenizer(scored_tokens(tokenizer) or [], folder / "tokenizer.bin")
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "q8_0"])
def test_there_and_back_through_the_commands(files, tmp_path, dtype):
    run, out = tmp_path / "run", tmp_path / "out"
    outcome = call(import_, "--from", "llama2c", "--model", files / "model.bin", "--output_dir", run)
    assert outcome.stdout == f"checkpoint: {run / 'checkpoints' / step_folder_name(0)}\n"
    outcome = call(export, "--checkpoint", run, "--to", "llama2c", "--output", out, "--dtype", dtype)
    assert "largest difference of a weight, read back by our own reader: " in outcome.stdout
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.bin", "tokenizer.bin"]
    assert "imported from another tool" in (out / "README.md").read_text()
    assert (out / "tokenizer.bin").read_bytes() == (files / "tokenizer.bin").read_bytes()
    assert ((out / "model.bin").read_bytes() == (files / "model.bin").read_bytes()) == (dtype == "fp32")


def test_a_full_disk_leaves_nothing(files, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(UserError, match="could not be written: No space left on device"):
        call(import_, "--from", "llama2c", "--model", files / "model.bin", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def changed(content: bytes, place: int, layout: str, value: float) -> bytes:
    end = place + struct.calcsize(layout)
    return content[:place] + struct.pack(layout, value) + content[end:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "it is cut off, or no file of llama2.c's"),
        (lambda b: b + b"\0", "it is cut off, or no file of llama2.c's"),
        (lambda b: b[:20], "has 20 bytes, too few"),
        (lambda b: b"", "has 0 bytes, too few"),
        (lambda b: changed(b, 0, "<I", 0x616B3433), "does not divide hidden_size=1634415667"),
        (lambda b: changed(b, 0, "<i", -32), "has dim=-32 in its header"),
        (lambda b: changed(b, 8, "<i", 0), "has n_layers=0 in its header"),
        (lambda b: changed(b, 8, "<i", 2**31 - 1), "num_layers"),
        (lambda b: changed(b, 12, "<i", 5), "num_heads=5 does not divide hidden_size=32"),
        (lambda b: changed(b, 20, "<i", -300), "it is cut off, or no file of llama2.c's"),
        (lambda b: changed(b, 24, "<i", 2**31 - 1), "it is cut off, or no file of llama2.c's"),
        (lambda b: changed(b, 28 + 4 * 7, "<f", float("nan")), "infinities or NaNs in embedding.weight"),
        (lambda b: struct.pack("<Ii", 0x616B3432, 3) + b, "is of version 3; of llama2.c's, versions 0, 1 and 2"),
        (lambda b: struct.pack("<Ii", 0x616B3432, 2) + b, "groups of"),
    ],
)
def test_a_damaged_model_is_one_line_and_writes_nothing(files, tmp_path, damage, message):
    path = files / "model.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        call(import_, "--from", "llama2c", "--model", path, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "it ends within token 299"),
        (lambda b: b[: b.index(b"\n<s>\n") + 7], "it ends within token 2"),
        (lambda b: b + struct.pack("<fI", -1, 1) + b"~", "has 301 tokens and"),
        (lambda b: b.replace(b"<0x41>", b"<0xFF>"), "are not the bytes"),
        (lambda b: b[:-1] + b"\xff", "token 299 is not UTF-8"),
        (lambda b: b"", "are not the bytes"),
        (lambda b: b.replace(b"\n<s>\n", b"\n<b>\n"), "no <|endoftext|> at 1"),
    ],
)
def test_a_damaged_tokenizer_is_one_line_and_writes_nothing(files, tmp_path, damage, message):
    path = files / "tokenizer.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as refused:
        call(import_, "--from", "llama2c", "--model", files / "model.bin", "--output_dir", tmp_path / "run")
    assert message in str(refused.value)
    assert "--tokenizer" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_files_that_are_none_are_named(files, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "missing", "cannot be read .No such file"),
        (files, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
    ):
        for option, other in (("--model", "--tokenizer"), ("--tokenizer", "--model")):
            good = files / f"{other[2:]}.bin"
            arguments = ["--from", "llama2c", option, path, other, good, "--output_dir", tmp_path / "run"]
            with pytest.raises(UserError, match=message):
                call(import_, *arguments)
    with pytest.raises(UserError, match="--tokenizer is for --from llama2c"):
        call(import_, "--from", "hf", "--model", files, "--tokenizer", files, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "experts", "message"),
    [
        ({}, 4, "llama2.c computes a dense Llama, and this is a MixtralForCausalLM"),
        ({"qk_norm": True}, 0, "this is a Qwen3ForCausalLM"),
        ({"rope_theta": 5e5}, 0, "llama2.c computes with model.rope_theta=10000, and the model has 500000"),
        ({"norm_eps": 1e-6}, 0, "llama2.c computes with model.norm_eps=1e-05, and the model has 1e-06"),
        ({"activation": "relu"}, 0, "no family of Hugging Face"),
    ],
)
def test_what_it_does_not_compute_is_refused(model, experts, message):
    with pytest.raises(UserError, match=message):
        check_config(RunConfig.model_validate({"model": model, "moe": {"num_experts": experts}}))


@pytest.fixture(scope="module")
def stories260k(shared_folder, tmp_path_factory) -> Path:
    """Run folder of a model that was trained elsewhere."""
    run = tmp_path_factory.mktemp("stories260K") / "run"
    models = shared_folder / "models"
    files = ["--model", models / "stories260K.bin", "--tokenizer", models / "tok512.bin"]
    call(import_, "--from", "llama2c", *files, "--output_dir", run)
    return run


@pytest.fixture(scope="module")
def greedy(stories260k) -> str:
    """PROMPT, continued by that model with 64 tokens."""
    model = load(stories260k)
    ids = prompt_ids(model.tokenizer, PROMPT)
    new = generate_ids(model.decoder, model.run, ids, SamplingConfig(temperature=0, max_new_tokens=64), None)
    text = model.tokenizer.decode([*ids, *new])
    assert text.startswith(f"{PROMPT}, there was a")
    return text


def test_the_logits_of_a_real_model_are_run_cs(stories260k, shared_folder):
    model = load(stories260k)
    ids = prompt_ids(model.tokenizer, "Once upon a time, there was a little girl named Lily. She loved to")
    with torch.no_grad():
        ours = model.decoder(torch.tensor([ids]))[0][0].numpy()
    assert np.abs(run_c.logits(shared_folder / "models" / "stories260K.bin", ids) - ours).max() < 1e-4


def test_a_real_model_comes_back_as_the_same_bytes(stories260k, shared_folder, tmp_path):
    call(export, "--checkpoint", stories260k, "--to", "llama2c", "--output", tmp_path / "out")
    theirs, ours = shared_folder / "models" / "stories260K.bin", tmp_path / "out" / "model.bin"
    assert len(ours.read_bytes()) == len(theirs.read_bytes())
    assert ours.read_bytes()[:28] == theirs.read_bytes()[:28]
    (_, expected), (_, found) = run_c.read(theirs), run_c.read(ours)
    for name, array in expected.items():
        if name in ("cos", "sin"):
            assert found[name] == pytest.approx(array, abs=1e-6)
        else:
            assert found[name].tobytes() == array.tobytes(), name
    assert (tmp_path / "out" / "tokenizer.bin").read_bytes() == (shared_folder / "models" / "tok512.bin").read_bytes()


def test_transformers_tells_the_same_story(stories260k, greedy, tmp_path):
    transformers = pytest.importorskip("transformers")
    outcome = call(export, "--checkpoint", stories260k, "--to", "hf", "--output", tmp_path / "out")
    assert "read back by transformers" in outcome.stdout
    model = load(stories260k)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    given = fast(PROMPT, return_tensors="pt")
    assert given.input_ids[0].tolist() == prompt_ids(model.tokenizer, PROMPT)
    found = theirs.generate(**given, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert fast.decode(found[0], skip_special_tokens=True) == greedy
    with torch.no_grad():
        assert (theirs(found).logits - model.decoder(found)[0]).abs().max() < 1e-4
    back = tmp_path / "back"
    call(import_, "--from", "hf", "--model", tmp_path / "out", "--output_dir", back)
    assert load(back).tokenizer.to_json() == model.tokenizer.to_json()


def test_llama_cpp_tells_the_same_story(stories260k, greedy, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    outcome = call(export, "--checkpoint", stories260k, "--to", "gguf", "--output", tmp_path / "out")
    assert "read back by llama.cpp" in outcome.stdout
    request = {"prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    [answer] = completions(tmp_path / "out" / "model.gguf", 512, [request], seconds=120)
    assert PROMPT + answer["text"] == greedy
