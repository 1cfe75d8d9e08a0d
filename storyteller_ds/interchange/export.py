"""Writing a model for another tool: all of it or nothing, and only if it computes the same."""

import importlib.util
import secrets
import shutil
from pathlib import Path

from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.errors import UserError
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange import llama_cpp
from storyteller_ds.interchange.huggingface.export import DTYPES, write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.llama_cpp import write_file
from storyteller_ds.interchange.verify import check_huggingface, check_llama_cpp
from storyteller_ds.model.counts import count_parameters

MODEL_FILE = "model.gguf"


def export_model(model: StoryModel, output: Path, form: str, dtype: str) -> str:
    """Write a folder for another tool.

    Args:
        model: from storyteller_ds.load.
        output: the folder; must not exist.
        form: hf or gguf.
        dtype: of the weights: fp32, fp16; bf16 for hf, q8_0 for gguf.

    Returns:
        A line on how far what was written is from the model.

    Raises:
        UserError: the format cannot express this model, the folder cannot be written, or it computes something else.
    """
    _refuse(model, output, form, dtype)  # before anything is written
    beside = output.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        beside.mkdir(parents=True)
        if form == "hf":
            write_folder(model, beside, dtype)
            line = check_huggingface(model, beside, dtype)
        else:
            write_file(model, beside / MODEL_FILE, llama_cpp.FORMATS[dtype])
            write_flushed(beside / "Modelfile", llama_cpp.modelfile(MODEL_FILE))
            line = check_llama_cpp(model, beside / MODEL_FILE, dtype)
        write_flushed(beside / "README.md", _card(model, open_checkpoint(model.step_folder), form, line))
        flush_to_disk(beside)
        beside.rename(output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror or error}; choose another --output") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return line


def _refuse(model: StoryModel, output: Path, form: str, dtype: str) -> None:
    if form == "hf":
        family_of(model.run)
    else:
        if importlib.util.find_spec("gguf") is None:
            raise UserError("gguf is not installed; pip install gguf")
        llama_cpp.architecture_of(model.run)
    formats = [*(DTYPES if form == "hf" else llama_cpp.FORMATS)]
    if dtype not in formats:
        raise UserError(f"--dtype {dtype} is not for --to {form}; use {', '.join(formats)}")
    if output.exists():
        raise UserError(f"{output} exists already; remove it, or choose another --output")


def _card(model: StoryModel, checkpoint: Checkpoint, form: str, verified: str) -> str:
    """README.md: what the model is, what it was trained on, and that the export was checked."""
    run, count = model.run, count_parameters(model.run)
    experts = f"{run.moe.num_experts} experts, top-{run.moe.top_k}" if run.moe_layers else "dense"
    score = checkpoint.manifest.val_bpb
    tokens = run.train.global_batch_size * run.data.sequence_length
    facts = {
        "parameters": f"{count.total:,}, {count.active:,} active per token ({experts})",
        "context": f"{run.context_length:,} tokens",
        "trained on": f"`data.source={run.data.source}`, {checkpoint.step:,} steps of {tokens:,} tokens",
        "bits per byte": "not validated at this step" if score is None else f"{score:.4f}, on held-out text",
        "checked": verified,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    tags = ["story-generation", *["mixture-of-experts"] * bool(run.moe_layers)]
    library, use = ("transformers", _WITH_TRANSFORMERS) if form == "hf" else ("gguf", _WITH_LLAMA_CPP)
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [{', '.join(tags)}]\n---\n\n"
        f"# A story model\n\nTrained and exported by storyteller_ds.\n\n| | |\n|---|---|\n{rows}\n\n{use}"
    )


_WITH_TRANSFORMERS = """```python
from transformers import pipeline

tell = pipeline("text-generation", "PATH_OF_THIS_FOLDER")
print(tell("Once upon a time")[0]["generated_text"])
```
"""
_WITH_LLAMA_CPP = """```
llama-cli -m model.gguf -no-cnv -p "Once upon a time"
ollama create my-stories && ollama run my-stories "Once upon a time"
```
"""
