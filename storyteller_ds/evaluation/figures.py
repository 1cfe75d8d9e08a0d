"""The rows of the table: each metric's name, unit, better direction and source."""

from collections.abc import Callable
from dataclasses import dataclass

from storyteller_ds.evaluation.evaluate import Evaluated, Generation
from storyteller_ds.evaluation.grades import ASPECTS
from storyteller_ds.evaluation.interval import Estimate
from storyteller_ds.evaluation.judge import Judged
from storyteller_ds.evaluation.memorisation import WINDOW, Copied
from storyteller_ds.evaluation.story_figures import StoryFigures
from storyteller_ds.evaluation.strata import POSITIONS, Stratum

HELD_OUT = "as held-out"
"""For metrics without a best value: closer to the held-out stories is better."""
_QUARTERS = ("shortest", "second", "third", "longest")
_RARITY_NAMES = (
    "the commonest tokens, half of the text",
    "the next 30 %",
    "the next 15 %",
    "the next 4 %",
    "the rarest, 1 % of the text",
)
"""One for each part that strata.RARITIES delimits."""


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    name: str
    """Includes the unit."""
    better: str
    of: Callable[[Evaluated], str]
    of_held_out: Callable[[Evaluated], str] | None = None
    """The same metric for held-out stories, for comparison."""
    is_per_token: bool = False
    """Whether it cannot be compared between models with different tokenizers."""


def all_figures(example: Evaluated) -> list[Figure]:
    """All rows; the caller leaves out those for which no checkpoint has a value.

    Args:
        example: one of the checkpoints; it determines how many strata there are.
    """
    return [*_prediction(), *_parts(example), *_stories(), *_copies(), *_grades()]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A fraction in percent, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def estimate(value: Estimate, digits: int = 4) -> str:
    """A number with the half-width of its interval."""
    return number(value.value, digits) + ("" if value.half_width is None else f" ± {value.half_width:.{digits}f}")


def _prediction() -> list[Figure]:
    return [
        Figure("bits per byte", "lower", lambda each: estimate(each.prediction.bits_per_byte)),
        Figure("loss (nats per token)", "lower", lambda each: estimate(each.prediction.loss), is_per_token=True),
        Figure("perplexity (per token)", "lower", lambda each: number(each.prediction.perplexity), is_per_token=True),
        Figure(
            "likeliest token is right (%)",
            "higher",
            lambda each: percent(each.prediction.calibration.accuracy),
            is_per_token=True,
        ),
        Figure(
            "calibration error (% points)",
            "lower",
            lambda each: percent(each.prediction.calibration.error),
            is_per_token=True,
        ),
    ]


def _parts(example: Evaluated) -> list[Figure]:
    """Loss by position, length and rarity."""

    def part(name: str, kind: str, i: int, is_per_token: bool = False) -> Figure:
        def of(each: Evaluated) -> str:
            strata: list[Stratum] = getattr(each.prediction, kind)
            return number(strata[i].value, 4) if i < len(strata) else "-"

        return Figure(name, "lower", of, is_per_token=is_per_token)

    ends = [f"to {end:,}" for end in POSITIONS[1:]] + ["on"]
    return [
        *(
            part(f"bits per byte, byte {start:,} {end} of a story", "by_position", i)
            for i, (start, end) in enumerate(zip(POSITIONS, ends, strict=True))
        ),
        *(
            part(f"bits per byte, {_QUARTERS[i]} quarter of the stories", "by_length", i)
            for i in range(len(example.prediction.by_length))
        ),
        *(part(f"loss of {name} (nats)", "by_rarity", i, is_per_token=True) for i, name in enumerate(_RARITY_NAMES)),
    ]


def _stories() -> list[Figure]:
    def line(name: str, better: str, get: Callable[[StoryFigures], str]) -> Figure:
        return _of_stories(name, better, lambda told: get(told.figures), lambda told: get(told.held_out))

    return [
        line("length (words)", HELD_OUT, lambda each: number(each.words, 1)),
        line("came to an end (% of stories)", HELD_OUT, lambda each: percent(each.ended)),
        line("with the end of a sentence (% of stories)", HELD_OUT, lambda each: percent(each.ended_in_a_sentence)),
        line("different words", HELD_OUT, lambda each: f"{each.vocabulary:,}"),
        line("words common in training stories (%)", HELD_OUT, lambda each: percent(each.common_share)),
        line("misspelt words (%)", "lower", lambda each: percent(each.misspelt_share)),
        line("distinct-1 (%)", HELD_OUT, lambda each: percent(each.distinct_1)),
        line("distinct-2 (%)", HELD_OUT, lambda each: percent(each.distinct_2)),
        line("distinct-3 (%)", HELD_OUT, lambda each: percent(each.distinct_3)),
        line("self-BLEU (0 to 100)", HELD_OUT, lambda each: number(each.self_bleu, 1)),
        line("repeated 4-grams in a story (%)", HELD_OUT, lambda each: percent(each.repeated_4)),
        line("no new name late (% of stories)", "higher", lambda each: percent(each.names_kept)),
    ]


def _copies() -> list[Figure]:
    def line(name: str, get: Callable[[Copied], str]) -> Figure:
        def shown(told: Generation, is_held_out: bool) -> str:
            found = told.memorisation
            return "-" if found is None else get(found.held_out if is_held_out else found.of_model)

        return _of_stories(name, HELD_OUT, lambda told: shown(told, False), lambda told: shown(told, True))

    return [
        line("longest passage from training, median (words)", lambda each: number(each.median_words, 0)),
        line("longest passage of all (words)", lambda each: number(max(each.longest_words, default=None), 0)),
        line(f"near-copies: half of the {WINDOW}-word passages (%)", lambda each: percent(each.near_copies)),
    ]


def _grades() -> list[Figure]:
    def line(aspect: str) -> Figure:
        def shown(judged: Judged | None) -> str:
            return "-" if judged is None else number(getattr(judged, aspect), 1)

        name = f"judge: {aspect} (0 to 10)"
        return _of_stories(name, "higher", lambda told: shown(told.judged), lambda told: shown(told.held_out_judged))

    return [line(aspect) for aspect in ASPECTS]


def _of_stories(
    name: str, better: str, of: Callable[[Generation], str], of_held_out: Callable[[Generation], str]
) -> Figure:
    def shown(get: Callable[[Generation], str]) -> Callable[[Evaluated], str]:
        return lambda each: "-" if each.generation is None else get(each.generation)

    return Figure(name, better, shown(of), shown(of_held_out))
