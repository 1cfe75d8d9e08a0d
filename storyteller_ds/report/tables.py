"""The tables of a report."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from storyteller_ds.atlas import report as atlas_report
from storyteller_ds.atlas.atlas import Atlas
from storyteller_ds.report.run_records import RunRecords

_LONG = 16
"""A table with more rows than this is shown only on request."""


@dataclass(frozen=True)
class Rows:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    """Columns that are not numbers."""

    @property
    def is_long(self) -> bool:
        """Whether the table is shown only on request."""
        return len(self.rows) > _LONG


def evaluation_rows(found: Mapping[str, Any]) -> tuple[list[Rows], list[str]]:
    """The table of `storyteller evaluate` and its remarks; leaves out what a file from another version lacks."""
    table = found.get("table")
    remarks = [str(line) for line in found.get("remarks", [])]
    if not isinstance(table, dict):
        return [], remarks
    rows = [[str(cell) for cell in row] for row in table.get("rows", [])]
    return [Rows("", [str(column) for column in table.get("columns", [])], rows, words=(0, 1))], remarks


def atlas_tables(atlas: Atlas) -> tuple[list[str], list[Rows]]:
    """The main findings of an atlas, and its tables."""
    tables = []
    for title, table in atlas_report.tables(atlas):
        columns = [str(column.header) for column in table.columns]
        cells = [[str(cell) for cell in column.cells] for column in table.columns]
        words = [i for i, column in enumerate(table.columns) if column.justify == "left"]
        tables.append(Rows(title, columns, [list(row) for row in zip(*cells, strict=True)], words))
    return [*atlas_report.verdict(atlas), *atlas.remarks], tables


def config_yaml(runs: Sequence[RunRecords]) -> list[tuple[str, str]]:
    """Name of each run, and its settings as a file that --config accepts."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    found = []
    for run in runs:
        if run.config is not None:
            out = io.StringIO()
            yaml.dump(run.config.model_dump(mode="json"), out)
            found.append((run.name, out.getvalue()))
    return found
