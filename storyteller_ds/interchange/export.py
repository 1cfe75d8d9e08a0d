"""Writing a model for another tool: completely or not at all, and only if it computes the same."""

import importlib.util
import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint
from storyteller_ds.data.tokenizers.llama2c import write_tokenizer
from storyteller_ds.data.tokenizers.scored import scored_tokens
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.errors import UserError
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange import llama_cpp
from storyteller_ds.interchange.huggingface.export import DTYPES, write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.llama2c import model_file
from storyteller_ds.interchange.verify import check_huggingface, check_llama2c, check_llama_cpp, check_safetensors
from storyteller_ds.model.canonical import placed_parameters
from storyteller_ds.model.counts import count_parameters


def export_model(model: StoryModel, output: Path, form: str, dtype: str) -> str:
    """Write a folder for another tool.

    Args:
        model: from storyteller_ds.load.
        output: the folder; must not exist.
        form: a key of FORMS.
        dtype: dtype of the weights, one that the form supports.

    Returns:
        A line on how far the export is from the model.

    Raises:
        UserError: the format cannot express this model, the folder cannot be written, or the export computes something
            else.
    """
    target = FORMS[form]
    target.check(model)  # before anything is written
    if dtype not in target.dtypes:
        raise UserError(f"--dtype {dtype} is not for --to {form}; use {', '.join(target.dtypes)}")
    if output.exists():
        raise UserError(f"{output} exists already; remove it, or choose another --output")
    beside = output.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        beside.mkdir(parents=True)
        line = target.write(model, beside, dtype)
        for path in beside.iterdir():
            flush_to_disk(path)
        write_flushed(beside / "README.md", _card(model, open_checkpoint(model.step_folder), target, line))
        flush_to_disk(beside)
        beside.rename(output)
    except (OSError, SafetensorError) as error:
        # numpy does not say why it wrote less than requested.
        reason = getattr(error, "strerror", None) or f"{error}; is the disk full?"
        raise UserError(f"{output} could not be written: {reason}; choose another --output") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return line


@dataclass(frozen=True)
class Form:
    """A format of another tool."""

    dtypes: tuple[str, ...]
    """Supported dtypes of the weights."""
    check: Callable[[StoryModel], object]
    """Raises UserError if the format cannot express the model."""
    write: Callable[[StoryModel, Path, str], str]
    """Writes into an empty folder, with weights of a dtype, and reads it back; see export_model."""
    library: str
    """The library that reads it, for the model card."""
    use: str
    """How to use it, in Markdown, for the model card."""


def _write_huggingface(model: StoryModel, folder: Path, dtype: str) -> str:
    write_folder(model, folder, dtype)
    return check_huggingface(model, folder, dtype)


def _check_for_llama_cpp(model: StoryModel) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError("gguf is not installed; pip install gguf")
    llama_cpp.architecture_of(model.run)


def _write_llama_cpp(model: StoryModel, folder: Path, dtype: str) -> str:
    path = folder / "model.gguf"
    llama_cpp.write_file(model, path, llama_cpp.FORMATS[dtype])
    write_flushed(folder / "Modelfile", llama_cpp.modelfile(path.name))
    return check_llama_cpp(model, path, dtype)


def _check_for_llama2c(model: StoryModel) -> None:
    model_file.check_config(model.run)
    if scored_tokens(model.tokenizer) is None or model.tokenizer.vocab_size != model.run.tokenizer.vocab_size:
        raise UserError(
            "llama2.c has no such tokenizer, only SentencePiece's with a token for each row "
            "(tokenizer.kind=sentencepiece without special_tokens, or llama2c); export it as hf or gguf"
        )


def _write_llama2c(model: StoryModel, folder: Path, dtype: str) -> str:
    weights = {placed.name: placed.parameter.detach().float().cpu() for placed in placed_parameters(model.decoder)}
    model_file.write_model(model.run, weights, folder / "model.bin", dtype)
    write_tokenizer(scored_tokens(model.tokenizer) or [], folder / "tokenizer.bin")
    return check_llama2c(model, folder / "model.bin", dtype)


def _write_safetensors(model: StoryModel, folder: Path, dtype: str) -> str:
    """Write weights under canonical names, with the run config and the tokenizer."""
    weights = {p.name: p.parameter.detach().to("cpu", DTYPES[dtype]) for p in placed_parameters(model.decoder)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_flushed(folder / "config.json", json.dumps({"run": model.run.model_dump(mode="json")}, indent=2) + "\n")
    write_flushed(folder / "tokenizer.json", model.tokenizer.to_json())
    return check_safetensors(model, folder / "model.safetensors", dtype)


FORMS = {
    "hf": Form(
        (*DTYPES,),
        lambda model: family_of(model.run),
        _write_huggingface,
        "transformers",
        """```python
from transformers import pipeline

tell = pipeline("text-generation", "PATH_OF_THIS_FOLDER")
print(tell("Once upon a time")[0]["generated_text"])
```
""",
    ),
    "gguf": Form(
        (*llama_cpp.FORMATS,),
        _check_for_llama_cpp,
        _write_llama_cpp,
        "gguf",
        """```
llama-cli -m model.gguf -no-cnv -p "Once upon a time"
ollama create my-stories && ollama run my-stories "Once upon a time"
```
""",
    ),
    "llama2c": Form(
        (*model_file.VERSIONS,),
        _check_for_llama2c,
        _write_llama2c,
        "llama2.c",
        """```
./run model.bin -z tokenizer.bin -i "Once upon a time"      # fp32; ./runq for q8_0
```
""",
    ),
    "safetensors": Form(
        (*DTYPES,),
        lambda _: None,
        _write_safetensors,
        "storyteller_ds",
        """```python
from safetensors.torch import load_file

weights = load_file("model.safetensors")     # names and shapes: storyteller_ds.model.decoder.Decoder
```
""",
    ),
}
"""By the value of --to."""


def _card(model: StoryModel, checkpoint: Checkpoint, form: Form, verified: str) -> str:
    """README.md: what the model is, what it was trained on, and that the export was checked."""
    run, count = model.run, count_parameters(model.run)
    experts = f"{run.moe.num_experts} experts, top-{run.moe.top_k}" if run.moe_layers else "dense"
    score = checkpoint.manifest.val_bpb
    tokens = run.train.global_batch_size * run.data.sequence_length
    trained = f"`data.source={run.data.source_name}`, {checkpoint.step:,} steps of {tokens:,} tokens"
    imported = not checkpoint.manifest.dataset_fingerprint
    facts = {
        "parameters": f"{count.total:,}, {count.active:,} active per token ({experts})",
        "context": f"{run.context_length:,} tokens",
        "trained on": "not known here: imported from another tool" if imported else trained,
        "bits per byte": "not validated at this step" if score is None else f"{score:.4f}, on held-out text",
        "checked": verified,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    tags = ["story-generation", *["mixture-of-experts"] * bool(run.moe_layers)]
    origin = "Imported" if imported else "Trained"
    return (
        f"---\nlibrary_name: {form.library}\npipeline_tag: text-generation\ntags: [{', '.join(tags)}]\n---\n\n"
        f"# A story model\n\n{origin} and exported by storyteller_ds.\n\n| | |\n|---|---|\n{rows}\n\n{form.use}"
    )
