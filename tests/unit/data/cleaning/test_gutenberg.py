"""Project Gutenberg's headers and licenses, old and new, are removed, and nothing else."""

import pytest

from storyteller_ds.data.cleaning.boundaries import paragraphs
from storyteller_ds.data.cleaning.gutenberg import without_license

TALE = ["THE FOX", "Once there was a fox.", "It ran *** away *** and that was the end."]
HEADER = ["The Project Gutenberg EBook of Tales, by A. Author", "This eBook is for the use of anyone anywhere."]
NEW = ["*** START OF THE PROJECT GUTENBERG EBOOK TALES ***", "Produced by A. Volunteer"]
SMALL_PRINT = [
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here? You know: lawyers.",
    "[Portions may be reprinted.]\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
]
LICENSE = ["START: FULL LICENSE", "THE FULL PROJECT GUTENBERG LICENSE"]


@pytest.mark.parametrize(
    "blocks",
    [
        [*HEADER, *NEW, *TALE, "*** END OF THE PROJECT GUTENBERG EBOOK TALES ***", *LICENSE],
        [*HEADER, *SMALL_PRINT, *TALE, "End of the Project Gutenberg Etext of Tales", *LICENSE],
        [*HEADER, "*** START OF THIS PROJECT GUTENBERG EBOOK\nTALES ***", *TALE, "End of Project Gutenberg's Tales"],
        [*HEADER, f"{NEW[0]}\n{TALE[0]}", *TALE[1:], f"*** END OF THIS PROJECT GUTENBERG EBOOK ***\n{LICENSE[0]}"],
    ],
)
def test_only_the_tale_is_left(blocks: list[str]) -> None:
    blocks = paragraphs("\n\n".join(blocks))
    removed: list[str] = []
    assert list(without_license(blocks, removed.append)) == TALE
    assert sum(map(len, removed)) + sum(map(len, TALE)) >= sum(map(len, blocks)) - 4


def test_of_two_books_in_a_file_both_tales_are_left() -> None:
    book = [*HEADER, *NEW, *TALE, "*** END OF THE PROJECT GUTENBERG EBOOK TALES ***", *LICENSE]
    assert list(without_license(book + book, lambda text: None)) == TALE + TALE


def test_a_tale_about_it_is_left_alone() -> None:
    tale = [*TALE, "We read it at Project Gutenberg, from start of the book to its end."]
    assert list(without_license(tale, pytest.fail)) == tale
