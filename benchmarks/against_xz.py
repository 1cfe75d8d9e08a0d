"""A model against a general-purpose compressor: bits per byte of the same text.

A model that predicts well could compress well: final_val_bpb is what an arithmetic coder driven by the model would need
(Shannon 1948; Deletang et al. 2024).
"""

import json
import lzma
from pathlib import Path

from storyteller_ds.errors import DataError, UserError
from storyteller_ds.records.run_folder import METRICS


def final_val_bpb(run_folder: Path) -> float:
    """The score of a finished run on the whole validation text (bits per byte).

    Raises:
        UserError: the run has no such score.
    """
    try:
        lines = (run_folder / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{run_folder} has no {METRICS} ({error.strerror}); give the folder of a run") from None
    scores = [record["final_val_bpb"] for record in map(json.loads, lines) if "final_val_bpb" in record]
    if not scores:
        raise UserError(f"{run_folder} was never validated on the whole text; train it to the end")
    return float(scores[-1])


def xz_bits_per_byte(text_file: Path) -> float:
    """Size after `xz -9` in bits, per byte of the file.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    try:
        text = text_file.read_bytes()
    except OSError as error:
        raise DataError(f"{text_file} cannot be read: {error.strerror}; check the path") from None
    if not text:
        raise DataError(f"{text_file} is empty; give the validation text")
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
