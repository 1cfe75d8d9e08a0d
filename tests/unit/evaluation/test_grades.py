"""Grades found in the answers of models."""

import pytest

from storyteller_ds.evaluation.grades import Grades, grades_in, question


@pytest.mark.parametrize(
    "answer",
    [
        '{"grammar": 7, "creativity": 5, "consistency": 8}',
        'Sure!\n```json\n{"Grammar": "7/10", "Creativity": 5.0, "Consistency": "8"}\n```\nAnything else?',
        'First {"a": 1}, then {"grammar": 7, "creativity": 5, "consistency": 8, "why": "good"}',
        "Grammar: 7/10, Creativity: 5/10, Consistency: 8/10",
        "**Grammar:** 7\n**Creativity:** 5\n**Consistency (with the beginning):** 8\n",
        "GRAMMAR = 7; creativity = 5; consistency = 8",
        "grammar: 2? no.\nGrammar: 7\nCreativity: 5\nConsistency: 8",
    ],
)
def test_found(answer):
    assert grades_in(answer) == Grades(7, 5, 8)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot grade this.",
        "Grammar: 7, creativity: 5",
        '{"grammar": 11, "creativity": 5, "consistency": 8}',
        '{"grammar": -1, "creativity": 5, "consistency": 8}',
        '{"grammar": true, "creativity": 5, "consistency": 8}',
        '{"grammar": null, "creativity": 5, "consistency": 8}',
        '{"grammar": NaN, "creativity": 5, "consistency": 8}',
        '{"grammar": [7], "creativity": 5, "consistency": 8}',
        "Grammar: -7, Creativity: 5, Consistency: 8",
        "Grammar: 7/10 Creativity: 5/10 Consistency: 80/100",
        "{" * 10_000,
    ],
)
def test_not_found(answer):
    assert grades_in(answer) is None


def test_the_question_has_the_story():
    asked = question("Once {x}", " there was.")
    assert "Once {x}\n***\n there was." in asked
    assert '{"grammar": G, "creativity": C, "consistency": K}' in asked
