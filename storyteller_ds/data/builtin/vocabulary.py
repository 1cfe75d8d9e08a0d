"""The words of the built-in stories, read from words.json: who they are about, where they happen, what is wished for.

The helpers and the hero's kinds share no word, and neither do the names of girls and boys, so a story
never has two characters that the reader could confuse. Every thing is a singular noun (or, for
a skill, a verb in its base form), so that "it" and "the" fit.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

WORDS = json.loads(files(__package__).joinpath("words.json").read_text(encoding="utf-8"))


class Thing(NamedTuple):
    """What the hero wishes or cares for, and the words that fit only this thing, by the placeholder that they fill."""

    word: str
    details: Mapping[str, str]


def _words(name: str) -> tuple[str, ...]:
    return tuple(WORDS[name])


def _things(kind: str) -> tuple[Thing, ...]:
    found = WORDS["things"][kind]
    return tuple(Thing(word, found[word] if isinstance(found, dict) else {}) for word in found)


GIRL_NAMES, BOY_NAMES = _words("girl_names"), _words("boy_names")
HERO_ANIMALS, SIZES = _words("hero_animals"), _words("sizes")
HIDING_PLACES, FOUND_INSTEAD = _words("hiding_places"), _words("found_instead")
CREATURES, SHADOW_MAKERS = _words("creatures"), _words("shadow_makers")
TRAITS: tuple[tuple[str, str], ...] = tuple((trait, shown_by) for trait, shown_by in WORDS["traits"])
"""A trait, and the clause that shows it, which begins with the hero's pronoun."""
PLACES: tuple[tuple[str, str], ...] = tuple((at, noun) for at, nouns in WORDS["places"].items() for noun in nouns)
"""The preposition that goes with a place, and the place: "on" the beach, "by" the pond."""
HELPERS: tuple[tuple[str, str], ...] = tuple((how, noun) for how, nouns in WORDS["helpers"].items() for noun in nouns)
"""The adjective of the first mention, and the noun that names the helper from then on."""
ELDERS: tuple[tuple[str, bool], ...] = tuple(WORDS["elders"].items())
"""People who live with the hero, and whether the word is for a woman."""
THINGS = {kind: _things(kind) for kind in WORDS["things"]}
ADJECTIVES: dict[str, tuple[str, ...]] = {kind: tuple(words) for kind, words in WORDS["adjectives"].items()}
POOLS: dict[str, tuple[str, ...]] = {name: tuple(words) for name, words in WORDS["pools"].items()}
"""Words that are chosen anew at each use; plots write them as <pool>."""
