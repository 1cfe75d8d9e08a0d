"""The story grammar: from (split, seed, index) to one story.

A plot is a text file in the folder plots. A blank line ends a paragraph; a line that begins with

    *   begins a sentence,
    ?   begins a sentence that half of the stories leave out,
    /   is another wording of the sentence above.

In a wording, [one|other] is a choice, <pool> is a word of `vocabulary.POOLS`, and {placeholder} is filled
with the same words throughout the story, so that names and objects stay the same.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from storyteller_ds.data.builtin import vocabulary
from storyteller_ds.data.builtin.vocabulary import Thing

GRAMMAR_VERSION = 1
"""Part of every corpus fingerprint: raise it with each change that alters a story."""

VALIDATION_KEYS_ONE_IN = 20
ANIMAL_HEROES_SHARE = 0.4
OPTIONAL_KEPT_SHARE = 0.5
LONGEST_STORY_WORDS = 250

Split = Literal["train", "validation"]
T = TypeVar("T")


class Chooser:
    """Random choices that are the same on every Python version.

    Python promises the stream of `random.Random(int).random()`, but not what `choice`, `shuffle` or
    `randrange` make of it; so every choice here is derived from `random()` alone.
    """

    def __init__(self, *seed: object) -> None:
        digest = hashlib.sha256("/".join(map(str, seed)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big")).random

    def one(self, options: Sequence[T]) -> T:
        """Choose one of the options, all equally likely."""
        return options[int(self._random() * len(options))]

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """Choose `count` different options."""
        left = list(options)
        return [left.pop(int(self._random() * len(left))) for _ in range(count)]

    def happens(self, probability: float) -> bool:
        """Decide an event of this probability."""
        return self._random() < probability


class StoryKey(NamedTuple):
    """What a story is about; its hash alone decides which split the story belongs to."""

    plot: str
    name: str
    thing: str
    place: str

    @property
    def split(self) -> Split:
        """The one split that has stories with this key, for every seed."""
        digest = hashlib.sha256("/".join(self).encode()).digest()
        return "train" if int.from_bytes(digest[:8], "big") % VALIDATION_KEYS_ONE_IN else "validation"


Wording: TypeAlias = tuple[str | tuple[str, ...], ...]
"""Fixed text and choices, in order."""


class Sentence(NamedTuple):
    """One step of a story in all its wordings."""

    optional: bool
    wordings: tuple[Wording, ...]


Paragraph: TypeAlias = tuple[Sentence, ...]


class Plot(NamedTuple):
    """A story shape: its sentences, and the things and adjectives that make sense in it."""

    paragraphs: tuple[Paragraph, ...]
    things: tuple[Thing, ...]
    adjectives: tuple[str, ...]


def _compile_wording(text: str) -> Wording:
    parts: list[str | tuple[str, ...]] = []
    end = 0
    for match in re.finditer(r"\[([^\]]*)\]|<(\w+)>", text):
        parts.append(text[end : match.start()])
        pool = match[2]
        parts.append(vocabulary.POOLS[pool] if pool else tuple(match[1].split("|")))
        end = match.end()
    parts.append(text[end:])
    return tuple(part for part in parts if part)


def compile_paragraphs(text: str) -> tuple[Paragraph, ...]:
    """Read a plot's text (this module's docstring has the notation)."""
    paragraphs = []
    for block in text.strip().split("\n\n"):
        sentences: list[Sentence] = []
        for line in block.splitlines():
            marker, wording = line[0], _compile_wording(line[2:])
            if marker == "/":
                last = sentences[-1]
                sentences[-1] = last._replace(wordings=(*last.wordings, wording))
            else:
                sentences.append(Sentence(marker == "?", (wording,)))
        paragraphs.append(tuple(sentences))
    return tuple(paragraphs)


def _plot(name: str, things: str, adjectives: str) -> Plot:
    def text(of: str) -> str:
        return files(__package__).joinpath("plots", f"{of.replace(' ', '_')}.txt").read_text(encoding="utf-8")

    # Every wording of the first sentence has the name and the place, so that a story shows its key.
    (opening,) = compile_paragraphs(text("opening"))
    first, *others = compile_paragraphs(text(name))
    return Plot((opening + first, *others), vocabulary.THINGS[things], vocabulary.ADJECTIVES[adjectives])


PLOTS = {name: _plot(name, **words) for name, words in vocabulary.WORDS["plots"].items()}
_PLOT_NAMES = tuple(PLOTS)
_NAMES = vocabulary.GIRL_NAMES + vocabulary.BOY_NAMES
_GIRLS = frozenset(vocabulary.GIRL_NAMES)


def with_article(words: str) -> str:
    """Put "a" or "an" before the words; the vocabulary has no word whose first letter misleads."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _capitalized(words: str) -> str:
    return words[0].upper() + words[1:]


_PRONOUNS = {
    True: {"he": "she", "him": "her", "his": "her", "himself": "herself", "his_own": "hers"},
    False: {"he": "he", "him": "him", "his": "his", "himself": "himself", "his_own": "his"},
}


def _draw_key(chooser: Chooser, split: Split) -> tuple[StoryKey, Thing, str]:
    """A key of the split, its thing, and the place with its preposition."""
    while True:
        plot = chooser.one(_PLOT_NAMES)
        name = chooser.one(_NAMES)
        thing = chooser.one(PLOTS[plot].things)
        at, place = chooser.one(vocabulary.PLACES)
        key = StoryKey(plot, name, thing.word, place)
        if key.split == split:
            return key, thing, f"{at} the {place}"


def _cast(chooser: Chooser, key: StoryKey, thing: Thing, at_place: str) -> Mapping[str, str]:
    """Fill every placeholder once for the whole story; a capitalized placeholder gets capitalized words."""
    is_girl = key.name in _GIRLS
    child = "girl" if is_girl else "boy"
    kind = chooser.one(vocabulary.HERO_ANIMALS) if chooser.happens(ANIMAL_HEROES_SHARE) else child
    friend = chooser.one(_NAMES)
    while friend == key.name:
        friend = chooser.one(_NAMES)
    elder, elder_is_woman = chooser.one(vocabulary.ELDERS)
    helper_adjective, helper = chooser.one(vocabulary.HELPERS)
    adjective = chooser.one(PLOTS[key.plot].adjectives)
    adj_thing = f"{adjective} {thing.word}"
    trait, shown_by = chooser.one(vocabulary.TRAITS)
    shown_by = shown_by.format(elder=elder, **_PRONOUNS[is_girl])
    spots = chooser.several(vocabulary.HIDING_PLACES, 3)
    found = chooser.several(vocabulary.FOUND_INSTEAD, 2)
    friend_is_girl = friend in _GIRLS
    cast = {
        **_PRONOUNS[is_girl],
        **thing.details,
        "name": key.name,
        "kind": kind,
        "a_kind": with_article(f"{chooser.one(vocabulary.SIZES)} {kind}"),
        "trait": trait,
        "a_trait": with_article(trait),
        "shown_by": shown_by,
        "friend": friend,
        "f_he": _PRONOUNS[friend_is_girl]["he"],
        "f_him": _PRONOUNS[friend_is_girl]["him"],
        "f_kid": "girl" if friend_is_girl else "boy",
        "elder": elder,
        "e_he": _PRONOUNS[elder_is_woman]["he"],
        "helper": helper,
        "a_helper": with_article(f"{helper_adjective} {helper}"),
        "thing": thing.word,
        "adj": adjective,
        "adj_thing": adj_thing,
        "a_thing": with_article(adj_thing),
        "a_plain_thing": with_article(thing.word),
        "place": key.place,
        "at_place": at_place,
        "spot_a": spots[0],
        "spot_b": spots[1],
        "spot_c": spots[2],
        "junk_a": found[0],
        "junk_b": found[1],
        "creature": chooser.one(vocabulary.CREATURES),
        "shadow": chooser.one(vocabulary.SHADOW_MAKERS),
    }
    return cast | {_capitalized(name): _capitalized(words) for name, words in cast.items()}


def _tell(chooser: Chooser, paragraphs: Sequence[Paragraph], cast: Mapping[str, str]) -> str:
    pieces: list[str] = []
    for paragraph in paragraphs:
        if pieces:
            pieces[-1] = "\n\n"
        for sentence in paragraph:
            if sentence.optional and not chooser.happens(OPTIONAL_KEPT_SHARE):
                continue
            for part in chooser.one(sentence.wordings):
                pieces.append(part if isinstance(part, str) else chooser.one(part))
            pieces.append(" ")
    # Placeholders are filled last, because a pool's words may contain some too.
    return "".join(pieces[:-1]).format_map(cast)


def story_key(split: Split, seed: int, index: int) -> StoryKey:
    """Return what `story` with the same arguments is about."""
    return _draw_key(Chooser(split, seed, index), split)[0]


def story(split: Split, seed: int, index: int) -> str:
    """Tell story `index`: paragraphs of printable ASCII with a blank line between them.

    A pure function of its arguments. Train and validation are disjoint by construction, even across
    seeds: the story's key (plot, name, thing, place) is hashed, the hash decides which split owns the key
    (one key in `VALIDATION_KEYS_ONE_IN` is validation's), and keys are drawn until this split owns one. A
    story that comes out too long is told again with the same key.
    """
    chooser = Chooser(split, seed, index)
    key, thing, at_place = _draw_key(chooser, split)
    cast = _cast(chooser, key, thing, at_place)
    while True:
        text = _tell(chooser, PLOTS[key.plot].paragraphs, cast)
        if len(text.split()) <= LONGEST_STORY_WORDS:
            return text
