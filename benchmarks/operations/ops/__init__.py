"""What is measured: one file per operation, each with its cases, competitors, limits and goals.

A module of this folder has

    cases(size, device) -> Iterator[Case]      for the shapes of a suite, or tiny ones for the tests
    GOALS: size -> list[Goal]                   the operation's own goals, if any
"""
