"""All measurements of one checkpoint."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from storyteller_ds.checkpoint.own_corpus import own_corpus
from storyteller_ds.checkpoint.read import is_of_another_tool, open_checkpoint
from storyteller_ds.config.data import DataConfig
from storyteller_ds.data.corpus import Corpus
from storyteller_ds.data.stories import Stories
from storyteller_ds.errors import DataError, UserError
from storyteller_ds.evaluation.calibration import Calibration, expected_calibration_error
from storyteller_ds.evaluation.interval import Estimate, ratio
from storyteller_ds.evaluation.judge import Judge, Judged
from storyteller_ds.evaluation.memorisation import Memorisation, memorisation
from storyteller_ds.evaluation.openings import openings
from storyteller_ds.evaluation.story_figures import StoryFigures, common_words, figures_of
from storyteller_ds.evaluation.strata import Stratum, by_length, by_position, by_rarity, token_counts
from storyteller_ds.evaluation.text import EvaluatedText, Log, given_text, validation_text
from storyteller_ds.evaluation.token_scores import score_tokens
from storyteller_ds.evaluation.told_stories import Told, tell
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.generation.story_model import StoryModel
from storyteller_ds.interchange.load import open_model


@dataclass(frozen=True)
class Asked:
    """What to measure."""

    data: DataConfig | None
    """Its validation text is used; None: the text the run was validated on."""
    stories: int
    """How many stories to generate; 0: none."""
    sampling: SamplingConfig
    judge: Judge | None


@dataclass(frozen=True)
class Prediction:
    """How well a text is predicted."""

    bits_per_byte: Estimate
    loss: Estimate
    """Nats per token."""
    perplexity: float
    calibration: Calibration
    by_position: list[Stratum]
    by_length: list[Stratum]
    by_rarity: list[Stratum]
    rarity_from: str
    """The text whose token counts define rarity."""
    nll_N: NDArray[np.float64]
    """Sum over the tokens of each story and the separator after it (nats)."""
    bytes_N: NDArray[np.int64]
    """UTF-8 bytes of each story."""
    tokens: int
    """Number of predicted tokens."""


@dataclass(frozen=True)
class Generation:
    """What a model's stories are like, compared with held-out ones that have the same openings."""

    figures: StoryFigures
    held_out: StoryFigures
    memorisation: Memorisation | None
    """None: the training text is not available."""
    judged: Judged | None
    held_out_judged: Judged | None
    told: list[Told]


@dataclass(frozen=True)
class Evaluated:
    """All metrics of a checkpoint."""

    folder: Path
    text: EvaluatedText
    prediction: Prediction
    generation: Generation | None
    remarks: list[str]
    """Caveats about the metrics, one per line."""


def evaluate(path: Path, asked: Asked, device: torch.device, log: Log) -> Evaluated:
    """Measure a checkpoint, in fp32 on every device.

    Args:
        path: run folder (its newest valid step), step folder, or export for transformers.
        asked: what to measure.
        device: where to run the model.
        log: receives a line about each step.

    Raises:
        UserError: the checkpoint or the text cannot be used, or the model's numbers are not finite.
    """
    model = open_model(path, device, log, "fp32")
    log(f"evaluating {model.step_folder}")
    remarks: list[str] = []
    corpus = _corpus(path, model, asked, remarks, log)
    if asked.data is not None:
        text = given_text(asked.data, model.tokenizer, log)
    else:
        assert corpus is not None  # it is None only if a text was given
        text = validation_text(corpus, model.run.data)
    if text.unknown_tokens:
        share = text.unknown_tokens / (len(text.stream) - 1)
        remarks.append(f"{share:.2%} of the tokens of {text.name} are unknown to the tokenizer: its bits are too few")
    prediction = _predict(model, text, corpus, device, log)
    generation = _tell(model, text, corpus, asked, remarks, log) if asked.stories else None
    return Evaluated(model.step_folder, text, prediction, generation, remarks)


def _corpus(path: Path, model: StoryModel, asked: Asked, remarks: list[str], log: Log) -> Corpus | None:
    """What the model was trained on; None if it is not available and a text was given."""
    try:
        if is_of_another_tool(path):
            raise DataError(f"{path} is an export, and no text is recorded for it; give --data")
        return own_corpus(model.run, open_checkpoint(model.step_folder), log)
    except DataError as error:
        if asked.data is None:
            raise
        reason = str(error).removesuffix("; give --data").removesuffix("; give a text with --data")
        remarks.append(
            f"the training text is not at hand, so nothing is said about copying: "
            f"{reason.removesuffix('; or give a text with --data')}"
        )
        return None


def _predict(
    model: StoryModel, text: EvaluatedText, corpus: Corpus | None, device: torch.device, log: Log
) -> Prediction:
    scores = score_tokens(model.decoder, model.run, text, device, log)
    if not np.isfinite(scores.nll_T).all():
        raise UserError(
            f"{model.step_folder} gives no finite probabilities for {text.name}; its numbers overflow, use another step"
        )
    story_T, bytes_T = text.story_of_each()[scores.place_T - 1], text.bytes.of_each(scores.place_T)
    token_T = text.stream.take(scores.place_T)
    nll_N: NDArray[np.float64] = np.bincount(story_T, weights=scores.nll_T).astype(np.float64)
    bytes_N = np.bincount(story_T, weights=bytes_T).astype(np.int64)
    loss = ratio(nll_N, np.bincount(story_T))
    counted = text.stream if corpus is None else corpus.train
    return Prediction(
        bits_per_byte=ratio(nll_N / math.log(2), bytes_N),
        loss=loss,
        perplexity=math.exp(min(loss.value, 700.0)),
        calibration=expected_calibration_error(scores),
        by_position=by_position(scores.nll_T, bytes_T, story_T),
        by_length=by_length(nll_N, bytes_N),
        by_rarity=by_rarity(scores.nll_T, token_T, token_counts(counted, model.decoder.vocab_size)),
        rarity_from=text.name if corpus is None else "the training text",
        nll_N=nll_N,
        bytes_N=bytes_N,
        tokens=len(token_T),
    )


def _tell(
    model: StoryModel, text: EvaluatedText, corpus: Corpus | None, asked: Asked, remarks: list[str], log: Log
) -> Generation | None:
    begun = openings(text, asked.stories, asked.sampling.seed)
    if len(begun) < asked.stories:
        remarks.append(f"{text.name} has {len(begun)} stories, and so many openings in place of {asked.stories}")
    told = tell(model, begun, asked.sampling, log)
    if told.left_out:
        remarks.append(f"{told.left_out} of {len(begun)} openings are longer than the model's context, left out")
    if not told.of_model:
        return None
    tokenizer = model.tokenizer
    common = None if corpus is None else common_words(Stories(corpus.train, tokenizer.end_of_text), tokenizer)
    vocab_size = model.decoder.vocab_size
    return Generation(
        figures_of(told.of_model, common),
        figures_of(told.held_out, common),
        None if corpus is None else memorisation(corpus, text, vocab_size, told.of_model, told.held_out, log),
        None if asked.judge is None else asked.judge.judge(told.of_model, log),
        None if asked.judge is None else asked.judge.judge(told.held_out, log),
        told.of_model,
    )
