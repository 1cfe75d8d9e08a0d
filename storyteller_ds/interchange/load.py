"""Reading a model of another tool into a run folder."""

from pathlib import Path

from storyteller_ds.checkpoint.names import CHECKPOINTS
from storyteller_ds.checkpoint.write import Contents, write_weights
from storyteller_ds.errors import UserError
from storyteller_ds.interchange.huggingface.load import read_folder
from storyteller_ds.model.canonical import placed_parameters


def import_model(source: Path, output_dir: Path) -> Path:
    """A checkpoint with the weights of a Hugging Face folder; returns its folder.

    Args:
        source: the folder.
        output_dir: run folder; must not exist.

    Raises:
        UserError: the model cannot be read, or computes what we do not; or the folder cannot be written.
    """
    if output_dir.exists():
        raise UserError(f"{output_dir} exists already; remove it, or choose another --output_dir")
    model = read_folder(source)
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
    return write_weights(output_dir / CHECKPOINTS, 0, contents, weights)
