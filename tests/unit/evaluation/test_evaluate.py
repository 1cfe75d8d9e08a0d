"""A checkpoint's figures equal those of training's own validation and those of plain loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from storyteller_ds import load, train
from storyteller_ds.config.data import DataConfig
from storyteller_ds.errors import DataError, UserError
from storyteller_ds.evaluation import evaluate as module
from storyteller_ds.evaluation.evaluate import Asked, Evaluated, evaluate
from storyteller_ds.evaluation.openings import Opening
from storyteller_ds.generation.sampling import SamplingConfig
from storyteller_ds.records.trained_run import TrainedRun
from tests.support.small_runs import SMALLEST

STORIES = [
    f"Ünder the tree — there was a fox named Kit{i}. He ate {i * i % 7} cakes and sang. The end of fox {i}."
    for i in range(40)
]
KINDS = {
    "char": {},
    "bpe": {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 300},
    "sentencepiece": {"tokenizer.kind": "sentencepiece", "tokenizer.vocab_size": 400},
    "masked": {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 300, "data.document_mask": True},
    "best_fit": {"tokenizer.kind": "sentencepiece", "tokenizer.vocab_size": 400, "data.packing": "best_fit"},
    "pad": {"data.packing": "pad", "data.sequence_length": 32},
}
CPU = torch.device("cpu")
SAMPLING = SamplingConfig(max_new_tokens=20)
NOTHING_TOLD = Asked(None, 0, SAMPLING, None)


def figures(path: Path, asked: Asked = NOTHING_TOLD) -> Evaluated:
    return evaluate(path, asked, CPU, lambda line: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedRun]:
    """A run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "stories.txt").write_text("\n\n".join(STORIES))
    settings = {**SMALLEST, "data.sequence_length": 64, "tokenizer.vocab_size": 80, "train.eval_batches": 1}
    return {
        kind: train("tiny_test", {**settings, **others}, data=folder / "stories.txt", output_dir=folder / kind)
        for kind, others in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_trainings_own_validation(runs, kind):
    record = runs[kind].metrics[-1]
    found = figures(runs[kind].folder).prediction
    assert found.loss.value == pytest.approx(record["final_val_loss"], rel=1e-6)
    assert found.bits_per_byte.value == pytest.approx(record["final_val_bpb"], rel=1e-6)
    assert found.perplexity == pytest.approx(record["final_val_ppl"], rel=1e-5)
    # Control: the loss on a part of the text is different.
    assert found.loss.value != pytest.approx(record["val_loss"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_stories(runs, kind):
    found = figures(runs[kind].folder)
    stories = {len(each.encode()) for each in STORIES}
    assert set(found.prediction.bytes_N.tolist()) <= stories
    assert len(found.prediction.bytes_N) == len(found.text.stories)
    assert found.prediction.nll_N.sum() / found.prediction.tokens == pytest.approx(found.prediction.loss.value)


def test_of_stories_with_prompts_the_stories_alone_are_scored(tmp_path):
    rows = [{"name": f"Kit{i}", "story": story} for i, story in enumerate(STORIES)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SMALLEST, "data.prompt": "Tell of {name}:\n", "data.sequence_length": 64, "tokenizer.vocab_size": 80}
    run = train("tiny_test", settings, data=path, output_dir=tmp_path / "run")
    own = figures(run.folder)
    assert own.prediction.bits_per_byte.value == pytest.approx(run.metrics[-1]["final_val_bpb"], rel=1e-6)
    assert set(own.prediction.bytes_N.tolist()) <= {len(story.encode()) for story in STORIES}
    # The same stories as a text that is given, with their prompts and without.
    held_out = [row for row in rows if f"Tell of {row['name']}:\n" in told(own)]
    path.write_text("".join(json.dumps(row) + "\n" for row in held_out))
    data = DataConfig(source="builtin", validation=str(path), prompt="Tell of {name}:\n")
    given = figures(run.folder, Asked(data, 0, SAMPLING, None)).prediction
    assert given.bits_per_byte == pytest.approx(own.prediction.bits_per_byte, rel=1e-9)
    whole = figures(run.folder, Asked(data.model_copy(update={"prompt": None}), 0, SAMPLING, None)).prediction
    assert whole.tokens == given.tokens
    assert whole.bits_per_byte.value != pytest.approx(given.bits_per_byte.value, rel=1e-5)


def told(found: Evaluated) -> str:
    stories = found.text.stories
    return "".join(found.text.tokenizer.decode(stories.ids(1 + i)) for i in range(len(stories)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["char", "masked"])
def test_they_are_those_of_a_plain_loop(runs, tmp_path, kind):
    (tmp_path / "few.txt").write_text("\n\n".join(STORIES[:4]))
    data = DataConfig(source="builtin", validation=str(tmp_path / "few.txt"))
    model, found = load(runs[kind].folder, device="cpu"), figures(runs[kind].folder, Asked(data, 0, SAMPLING, None))
    ids = torch.from_numpy(found.text.stream.read(0, len(found.text.stream)))
    end = model.tokenizer.end_of_text
    nll, right, sure = [], [], []
    for start in range(0, len(ids) - 1, 64):
        window = ids[start : start + 65]
        for i in range(len(window) - 1):  # predict each token separately, from all that it may see
            context = window[: i + 1]
            begin = max([k for k, each in enumerate(context) if each == end], default=0) if kind == "masked" else 0
            logits = model.decoder(context[None, begin:])[0][0, -1].double()
            nll.append(float(F.cross_entropy(logits, window[i + 1])))
            right.append(int(logits.argmax()) == int(window[i + 1]))
            sure.append(float(logits.softmax(-1).max()))
    assert len(nll) == found.prediction.tokens
    assert found.prediction.loss.value == pytest.approx(float(np.mean(nll)), rel=1e-5)
    assert found.prediction.calibration.accuracy == pytest.approx(float(np.mean(right)), abs=2 / len(nll))
    stories = np.split(np.array(nll), 1 + np.flatnonzero(ids[1:-1].numpy() == end))
    assert found.prediction.nll_N == pytest.approx([each.sum() for each in stories], rel=1e-4)
    binned = sum(each.confidence * each.tokens for each in found.prediction.calibration.bins) / len(nll)
    assert binned == pytest.approx(float(np.mean(sure)), rel=1e-4)


def test_a_given_text_that_is_the_runs_own_has_the_same_figures(runs, tmp_path):
    own = figures(runs["bpe"].folder)
    stories = [own.text.tokenizer.decode(own.text.stories.ids(i)) for i in range(1, 1 + len(own.text.stories))]
    (tmp_path / "held-out.txt").write_text("\n\n".join(stories))
    data = DataConfig(source="builtin", validation=str(tmp_path / "held-out.txt"))
    given = figures(runs["bpe"].folder, Asked(data, 0, SAMPLING, None))
    assert given.prediction.bits_per_byte == pytest.approx(own.prediction.bits_per_byte, rel=1e-9)
    assert given.prediction.by_rarity == own.prediction.by_rarity
    assert given.remarks == []


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_one_story(runs, tmp_path, kind):
    (tmp_path / "one.txt").write_text(STORIES[3])
    data = DataConfig(source="builtin", validation=str(tmp_path / "one.txt"))
    found = figures(runs[kind].folder, Asked(data, 3, SAMPLING, None))
    assert found.prediction.bits_per_byte.half_width is None
    assert found.prediction.bytes_N.tolist() == [len(STORIES[3].encode())]
    assert found.prediction.by_length == []
    assert found.generation is not None
    # Not three times this one: compared with that, three stories of a model would seem different.
    assert found.generation.figures.stories == found.generation.held_out.stories == 1
    assert any("has 1 stories, and so many openings in place of 3" in remark for remark in found.remarks)


def test_the_same_seed_gives_the_same_figures_and_another_does_not(runs):
    asked = [Asked(None, 4, SamplingConfig(max_new_tokens=20, seed=seed), None) for seed in (1, 1, 2)]
    first, second, third = (figures(runs["bpe"].folder, each).generation for each in asked)
    assert first == second
    assert first is not None
    assert third is not None
    assert first.told != third.told


def test_the_control_is_how_the_stories_went_on(runs):
    found = figures(runs["bpe"].folder, Asked(None, 12, SamplingConfig(max_new_tokens=1000), None))
    assert found.generation is not None
    openings = [story.prompt for story in found.generation.told]
    assert all(any(each.startswith(opening) for each in STORIES) for opening in openings)
    held_out = found.generation.held_out
    assert held_out.ended == 1  # all end; one longer than the context of 64 tokens would be cut
    assert held_out.misspelt_share is not None


def test_openings_that_do_not_fit_are_said_and_left_out(runs, monkeypatch):
    given = [Opening("fox " * 30, "and so on"), Opening("There was", " a fox."), Opening("", "A fox.")]
    monkeypatch.setattr(module, "openings", lambda text, number, seed: given[:number])
    found = figures(runs["char"].folder, Asked(None, 3, SAMPLING, None))
    assert found.remarks == ["1 of 3 openings are longer than the model's context, left out"]
    assert found.generation is not None
    assert [each.prompt for each in found.generation.told] == ["There was", ""]
    assert found.generation.held_out.words == 2
    # With no opening left there are no figures, and no error.
    assert figures(runs["char"].folder, Asked(None, 1, SAMPLING, None)).generation is None


def test_a_model_without_numbers_is_refused(runs, monkeypatch):
    model = load(runs["bpe"].folder, device="cpu")
    model.decoder.final_norm.weight.data.fill_(math.nan)
    monkeypatch.setattr(module, "open_model", lambda *arguments: model)
    with pytest.raises(UserError, match=r"gives no finite probabilities for .*stories\.txt"):
        figures(runs["bpe"].folder)


def test_without_its_text_another_is_asked_for_and_the_rest_goes_on(runs, tmp_path):
    own = runs["bpe"].folder.parent / "stories.txt"
    (tmp_path / "other.txt").write_text("\n\n".join(STORIES[:9]))
    asked = Asked(DataConfig(source="builtin", validation=str(tmp_path / "other.txt")), 2, SAMPLING, None)
    assert figures(runs["bpe"].folder, asked).generation.memorisation is not None  # type: ignore[union-attr]
    own.rename(own.with_name("away.txt"))
    try:
        with pytest.raises(DataError, match="give a text with --data"):
            figures(runs["bpe"].folder)
        found = figures(runs["bpe"].folder, asked)
    finally:
        own.with_name("away.txt").rename(own)
    assert found.generation is not None
    assert found.generation.memorisation is None
    assert found.generation.figures.common_share is None
    assert found.prediction.rarity_from == found.text.name
    (remark,) = found.remarks
    assert remark.startswith("the training text is not at hand, so nothing is said about copying: ")
    assert "--data" not in remark
