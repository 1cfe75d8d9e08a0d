"""report.html, when a run ends."""

from collections.abc import Callable
from pathlib import Path

from storyteller_ds.redaction import one_line
from storyteller_ds.training.callbacks.callback import Callback


class RunReport(Callback):
    """Writes the report of the run folder when the run ends, however it ends.

    If the report cannot be written, one line is logged; the run does not fail.

    Args:
        folder: folder of the run.
        log: logs a line.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self._folder, self._log = folder, log

    def on_end(self, exit_code: int) -> None:
        """Write it."""
        try:
            # Imported here: matplotlib is needed at the end only.
            from storyteller_ds.report.page import write_report
            from storyteller_ds.report.run_records import read_run

            write_report([read_run(self._folder, is_over=True)], self._folder)
        except Exception as error:  # whatever it is, the run has been trained
            self._log(f"no report was written ({one_line(error)}); storyteller report {self._folder} tries again")
