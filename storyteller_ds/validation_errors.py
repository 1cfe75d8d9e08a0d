"""What pydantic finds wrong with configs, sampling settings, manifests and DeepSpeed's JSON, in one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_IN_OUR_WORDS = {
    "bool_type": "should be true or false",
    "tuple_type": "should be a list, for instance [a, b]",
    "is_instance_of": "should be a path",
    "model_type": "is a section; set its fields, each by its name",
    "string_type": "should be a text; put it in quotes",
}


def first_problem(error: "ValidationError") -> str:
    """The first problem: `field=value: what it should be`."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {field:.80}"
    value = "" if problem["type"] == "missing" else f"={problem['input']!r:.60}"
    return f"{field}{value}: {complaint(problem)}"


def complaint(problem: "ErrorDetails") -> str:
    """What is wrong with a value, without its name."""
    message = problem["msg"].removeprefix("Value error, ")
    return _IN_OUR_WORDS.get(problem["type"]) or message[0].lower() + message[1:]
