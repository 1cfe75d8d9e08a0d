"""The marks of each character of a story."""

import pytest

from storyteller_ds.atlas.parts_of_speech import NAMES
from storyteller_ds.atlas.story_marks import KINDS, PARTS_OF_SPEECH, SPEECH, WORD_PLACES, marks_of

STORY = "One day Lily saw 12 cats. \"It's big,\" said Lily's mom.\n\nThe end"


def at(story: str, part: str, marks, names) -> set[str]:
    start = story.index(part)
    return {names[i] for i in marks[start : start + len(part)]}


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("One", "word"),
        ("Lily", "name"),
        ("saw", "word"),
        ("12", "number"),
        (".", "punctuation"),
        ('"', "quotation mark"),
        ("It's", "word"),
        (",", "punctuation"),
        ("Lily's", "name"),
        ("\n\n", "white space"),
        ("The", "word"),
    ],
)
def test_kinds(part, kind):
    assert at(STORY, part, marks_of(STORY, False).kind_C, KINDS) == {kind}


def test_a_name_is_one_also_where_it_begins_a_sentence():
    story = "Tom ran. Then Tom sat."
    assert {KINDS[i] for i in marks_of(story, False).kind_C[:3]} == {"name"}


def test_places_in_words():
    places = marks_of(STORY, False).word_place_C
    assert [WORD_PLACES[i] for i in places[:4]] == ["begins a word", "within a word", "within a word", "no word"]
    assert sum(WORD_PLACES[i] == "begins a word" for i in places) == 12


@pytest.mark.parametrize(
    ("story", "spoken"),
    [
        ('He said, "Go on," and "No."', ["Go on,", "No."]),
        ("He said, “Go ‘on’,” twice", ["Go ‘on’,"]),
        ("«Go» he „said“ then", ["Go", "said"]),
        ('"Never closed\n\nnew paragraph "yes"', ["Never closed", "yes"]),
        ('"To the end', ["To the end"]),
        ("It's the dog's", []),
        ("", []),
    ],
)
def test_speech(story, spoken):
    speech = marks_of(story, False).speech_C
    found = "".join(c if s else "\0" for c, s in zip(story, speech, strict=True))
    assert [each for each in found.split("\0") if each] == spoken
    assert SPEECH[1] == "in quotation marks"


def test_parts_of_speech():
    pytest.importorskip("denckring_en_pos")
    story = "The little girl ran to the big tree. She was very happy and sang!"
    marks = marks_of(story, True).part_of_speech_C
    for word, part in {
        **{"The": "determiner", "little": "adjective", "girl": "noun", "ran": "verb", "She": "pronoun"},
        **{"was": "auxiliary", "very": "adverb", "and": "conjunction", " ": "no word", "!": "no word"},
    }.items():
        assert at(story, word, marks, PARTS_OF_SPEECH) == {part}, word
    assert marks_of(story, False).part_of_speech_C is None
    assert len(NAMES) + 1 == len(PARTS_OF_SPEECH)


def test_names_are_found_anywhere_in_a_long_story():
    story = "They ran on. " * 3000 + "Ann saw Tom. " + "They ran on. " * 3000 + "Tom ran."
    assert at(story, "Tom", marks_of(story, False).kind_C, KINDS) == {"name"}
    assert at(story[::-1], "moT", marks_of(story, False).kind_C[::-1], KINDS) == {"name"}
