"""Tables of numbers in an atlas, stored as lists of lists in its JSON."""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator


def _table(kind: type[np.generic]) -> PlainValidator:
    def read(value: Any) -> NDArray[Any]:
        table = np.array(value, dtype=kind)
        if table.ndim != 2:
            raise ValueError("is not a table of numbers")
        return table

    return PlainValidator(read)


Matrix = Annotated[NDArray[np.float64], _table(np.float64)]
"""Unknown values are null in the JSON, and NaN here."""
Counts = Annotated[NDArray[np.int64], _table(np.int64)]
