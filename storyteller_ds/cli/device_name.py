"""The parameter type of an option that names a device."""

import re
from typing import Any

import click


class DeviceName(click.ParamType[str]):
    """auto, cpu, mps, cuda, or cuda:N, where N is the index of a GPU."""

    name = "auto|cpu|mps|cuda|cuda:N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Called by click. --help shows the names in capitals, so uppercase is accepted too."""
        value = value.lower()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
            self.fail(
                f"{value!r} is not a device; give auto, cpu, mps, cuda or, for one card of several, cuda:0", param, ctx
            )
        return str(value)
