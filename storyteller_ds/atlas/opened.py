"""A mixture, with the text on which its experts are examined."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from storyteller_ds.checkpoint.own_corpus import own_corpus
from storyteller_ds.checkpoint.read import is_of_another_tool, open_checkpoint
from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.tokenizers.pieces import Piece, pieces
from storyteller_ds.errors import DataError, UserError
from storyteller_ds.evaluation.text import EvaluatedText, given_text, validation_text
from storyteller_ds.generation.load import load_decoder
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.load import open_model


class Mixture(NamedTuple):
    """A model with experts, in eval mode and fp32, and a text."""

    model: StoryModel
    text: EvaluatedText

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.model.step_folder

    @property
    def blocks(self) -> list[int]:
        """The blocks that have experts, counted from 0."""
        run = self.model.run
        return [block for block in range(run.model.num_layers) if run.moe.is_moe_layer(block)]

    @property
    def num_experts(self) -> int:
        """Experts of each layer."""
        return self.model.run.moe.num_experts

    @property
    def top_k(self) -> int:
        """Experts that each token goes to."""
        return self.model.run.moe.top_k

    def spelling(self, tokens: Iterable[int]) -> dict[int, str]:
        """The text that these tokens stand for, or their names."""
        contents, tokenizer = pieces(self.text.tokenizer), self.text.tokenizer
        return {
            each: str(Piece(each, contents[each])) if each in contents else tokenizer.name(each) or f"token {each}"
            for each in sorted(tokens)
        }


def open_mixture(path: Path, data: DataConfig | None, device: torch.device, log: Callable[[str], None]) -> Mixture:
    """Open a checkpoint and its text.

    Args:
        path: run folder (its newest valid step), step folder, or export for transformers.
        data: its validation text is read; None: the text the run was validated on.
        device: where the model is loaded.
        log: gets a line about each step.

    Raises:
        UserError: the model has no experts.
        DataError: the text cannot be read, or none is known.
    """
    # Nothing is generated, so there is no need to prepare the fastest way to generate.
    model = open_model(path, device, log, "fp32") if is_of_another_tool(path) else load_decoder(path, device, log)
    if not model.run.moe_layers:
        raise UserError(
            f"{model.step_folder} is a dense model and has no experts; give a mixture (storyteller upcycle makes one)"
        )
    log(f"looking at {model.step_folder}")
    if data is not None:
        return Mixture(model, given_text(data, model.tokenizer, log))
    if is_of_another_tool(path):
        raise DataError(f"{path} is an export, and no text is recorded for it; give --data")
    corpus = own_corpus(model.run, open_checkpoint(model.step_folder), log)
    return Mixture(model, validation_text(corpus, model.run.data))
