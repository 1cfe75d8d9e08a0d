"""A story in a Markdown file: it reads as generated, even if it has characters with a meaning in Markdown."""

import re

from storyteller_ds.untrusted import for_terminal

_INLINE = re.compile(r"[\\`*_\[<&~$]")
_AT_THE_START = re.compile(r"\d+[.)]|[-+=#>]")
"""At the start of a line: a list, a heading or its underline, a quote."""


def as_quote(prompt: str, continuation: str) -> str:
    """A block quote with the prompt in bold; each line of the story is a paragraph of its own."""
    *heads, head = for_terminal(prompt).split("\n")
    tail, *rest = for_terminal(continuation).split("\n")
    space = " " if head[-1:].isspace() or tail[:1].isspace() else ""
    lines = [*map(_bold, heads), _joined(head.strip(), space, tail.strip()), *map(_escaped, rest)]
    return "> " + "\n>\n> ".join(line for line in lines if line)


def _bold(line: str) -> str:
    return f"**{_escaped(line)}**" if line.strip() else ""


def _joined(head: str, space: str, tail: str) -> str:
    if not head or not tail:
        return _bold(head) + _escaped(tail)
    if not space and not head[-1].isalnum():
        # Asterisks between a period and a letter would begin bold text, not end it (CommonMark, "flanking").
        return f"{_bold(head)}&#{ord(tail[0])};{_escaped_inline(tail[1:])}"
    return f"{_bold(head)}{space}{_escaped_inline(tail)}"


def _escaped(line: str) -> str:
    line = line.strip()
    start = _AT_THE_START.match(line)
    if start is None:
        return _escaped_inline(line)
    return f"{start[0][:-1]}\\{start[0][-1]}{_escaped_inline(line[start.end() :])}"


def _escaped_inline(text: str) -> str:
    return _INLINE.sub(r"\\\g<0>", text)
