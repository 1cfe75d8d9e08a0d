"""A dataset folder in the hub's layout."""

from pathlib import Path

HUB_NAME = "someone/ShortStories"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TINY_STORIES = "roneneldan/TinyStories"
TRAIN_ROWS = ["  One day.\r\nThe end.\n", None, "Two\rcats.", " \n", "Three dogs.", "Vier Bären. 🐻"]
"""Rows as stored; None and whitespace-only rows are not documents."""
TRAIN = ["One day.\nThe end.", "Two\ncats.", "Three dogs.", "Vier Bären. 🐻"]
VALIDATION = ["Last one."]


def write_dataset(folder: Path) -> Path:
    """Create the folder, with two files of TRAIN_ROWS and one of VALIDATION, and return it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = folder / "data"
    data.mkdir(parents=True)
    for number, rows in enumerate([TRAIN_ROWS[:4], TRAIN_ROWS[4:]]):
        table = pa.table({"text": rows, "pages": list(range(len(rows)))})
        pq.write_table(table, data / f"train-0000{number}-of-00002.parquet")
    table = pa.table({"text": VALIDATION, "pages": [1]})
    pq.write_table(table, data / "validation-00000-of-00001.parquet")
    return folder
