"""Writing a model for another tool: all of it or nothing, and only if it computes the same."""

import secrets
import shutil
from pathlib import Path

from storyteller_ds.checkpoint.read import Checkpoint, open_checkpoint
from storyteller_ds.durable import flush_to_disk, write_flushed
from storyteller_ds.errors import UserError
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.huggingface.export import write_folder
from storyteller_ds.interchange.huggingface.families import family_of
from storyteller_ds.interchange.verify import check_huggingface
from storyteller_ds.model.counts import count_parameters


def export_model(model: StoryModel, output: Path, dtype: str) -> str:
    """Write a folder for Hugging Face's tools.

    Args:
        model: from storyteller_ds.load.
        output: the folder; must not exist.
        dtype: fp32, bf16 or fp16.

    Returns:
        A line on how far its logits are from the model's.

    Raises:
        UserError: no family computes this model, the folder cannot be written, or logits differ.
    """
    family_of(model.run)  # refused before anything is written
    if output.exists():
        raise UserError(f"{output} exists already; remove it, or choose another --output")
    beside = output.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        beside.mkdir(parents=True)
        write_folder(model, beside, dtype)
        line = check_huggingface(model, beside, dtype)
        write_flushed(beside / "README.md", _card(model, open_checkpoint(model.step_folder), line))
        flush_to_disk(beside)
        beside.rename(output)
    except OSError as error:
        raise UserError(f"{output} could not be written: {error.strerror or error}; choose another --output") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return line


def _card(model: StoryModel, checkpoint: Checkpoint, verified: str) -> str:
    """README.md: what the model is, what it was trained on, and that the export was checked."""
    run, count = model.run, count_parameters(model.run)
    experts = f"{run.moe.num_experts} experts, top-{run.moe.top_k}" if run.moe_layers else "dense"
    score = checkpoint.manifest.val_bpb
    facts = {
        "parameters": f"{count.total:,}, {count.active:,} active per token ({experts})",
        "context": f"{run.context_length:,} tokens",
        "trained on": f"`data.source={run.data.source}`, {checkpoint.step:,} steps of "
        f"{run.train.global_batch_size * run.data.sequence_length:,} tokens",
        "bits per byte": "not validated at this step" if score is None else f"{score:.4f}, on held-out text",
        "checked": verified,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    tags = ["story-generation", *["mixture-of-experts"] * bool(run.moe_layers)]
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [{', '.join(tags)}]\n---\n\n"
        f"# A story model\n\nTrained and exported by storyteller_ds.\n\n| | |\n|---|---|\n{rows}\n\n"
        '```python\nfrom transformers import pipeline\n\ntell = pipeline("text-generation", "PATH_OF_THIS_FOLDER")\n'
        'print(tell("Once upon a time")[0]["generated_text"])\n```\n'
    )
