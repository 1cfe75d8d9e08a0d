"""The numbers of a record, for trackers that accept nothing else."""

from storyteller_ds.training.callbacks.callback import Record


def scalars(record: Record, with_lists: bool) -> dict[str, float]:
    """Name -> number, without the step and values that are None.

    Args:
        record: a training or validation record.
        with_lists: whether to include lists of numbers, entry by entry as NAME/INDEX: a number for each expert or
            layer. Lists of lists are never included.
    """
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name == "step":
            continue
        if isinstance(value, list) and with_lists:
            entries = {f"{name}/{index}": entry for index, entry in enumerate(value)}
        else:
            entries = {name: value}
        numbers |= {key: float(entry) for key, entry in entries.items() if isinstance(entry, int | float)}
    return numbers
