"""Reading a model of another tool into a run folder."""

import shutil
from pathlib import Path

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.write import Contents, write_weights
from storyteller_ds.errors import UserError
from storyteller_ds.interchange.huggingface.load import read_folder
from storyteller_ds.interchange.imported import Imported
from storyteller_ds.interchange.llama2c.model_file import read_model
from storyteller_ds.interchange.llama2c.tokenizer_file import read_tokenizer
from storyteller_ds.model.canonical import placed_parameters


def import_model(form: str, source: Path, tokenizer: Path | None, output_dir: Path) -> Path:
    """A checkpoint with the weights of another tool's model; returns its folder.

    Args:
        form: hf or llama2c.
        source: the folder of Hugging Face's, or the model.bin of llama2.c.
        tokenizer: the tokenizer.bin of llama2.c; None: the one beside the model.
        output_dir: run folder; must not exist.

    Raises:
        UserError: the model cannot be read, or computes what we do not; or the folder cannot be written.
    """
    if output_dir.exists():
        raise UserError(f"{output_dir} exists already; remove it, or choose another --output_dir")
    if form == "hf":
        if tokenizer is not None:
            raise UserError("--tokenizer is for --from llama2c; a folder of Hugging Face's has its own")
        model = read_folder(source)
    else:
        model = _read_llama2c(source, tokenizer or source.with_name("tokenizer.bin"))
    contents = Contents(
        trainer={},
        config={"run": model.run.model_dump(mode="json"), "deepspeed": None, "topology": {}},
        tokenizer_json=model.tokenizer.to_json(),
        dataset_fingerprint="",
        topology={"world_size": 1},
    )
    weights = {placed.name: placed.parameter.detach() for placed in placed_parameters(model.decoder)}
    try:
        (output_dir / CHECKPOINTS).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be made: {error.strerror}; choose another --output_dir") from None
    try:
        return write_weights(output_dir / CHECKPOINTS, 0, contents, weights)
    except BaseException:
        shutil.rmtree(output_dir, ignore_errors=True)
        raise


def _read_llama2c(source: Path, tokenizer_file: Path) -> Imported:
    tokenizer = read_tokenizer(tokenizer_file)
    run, decoder = read_model(source)
    if tokenizer.vocab_size != run.tokenizer.vocab_size:
        raise UserError(
            f"{tokenizer_file} has {tokenizer.vocab_size} tokens and {source} {run.tokenizer.vocab_size}; give the "
            "tokenizer.bin that belongs to the model with --tokenizer"
        )
    return Imported(decoder, run, tokenizer)
