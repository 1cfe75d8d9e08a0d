"""Reads what an offline Weights & Biases run wrote to disk; wandb itself has no reader in Python since 0.31.

The `run-*.wandb` file is a log in LevelDB's framing behind a header of wandb's own: blocks of 32 KiB hold
frames of a 7-byte head (checksum, length, type) and a body, and a record that does not fit in the rest of
a block is split over several frames. Unlike LevelDB, wandb's checksum is the plain CRC-32 of type and body.
"""

import importlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_SIZE = 32 * 1024
FILE_HEAD_BYTES = 7
FRAME_HEAD = struct.Struct("<IHB")
FULL, LAST = 1, 4


def read_history(run_folder: Path) -> list[dict[str, object]]:
    """Return the history rows of an offline run, in the order written.

    A row holds the metrics and wandb's `_step`, `_timestamp` and `_runtime`. Values went through JSON, so a
    float without a fraction comes back as the equal integer. A nested metric's key joins its parts with ".".

    Args:
        run_folder: An `offline-run-*` folder.
    """
    rows = []
    for record in _read_records(run_folder):
        if record.WhichOneof("record_type") == "history":
            row = {_item_key(item): json.loads(item.value_json) for item in record.history.item}
            row["_step"] = record.history.step.num
            rows.append(row)
    return rows


def read_config(run_folder: Path) -> dict[str, object]:
    """Return the config of an offline run, without wandb's own `_wandb` entry.

    Args:
        run_folder: An `offline-run-*` folder.
    """
    config: dict[str, object] = {}
    for record in _read_records(run_folder):
        kind = record.WhichOneof("record_type")
        if kind not in ("run", "config"):
            continue
        changes = record.run.config if kind == "run" else record.config
        for item in changes.update:
            config[_item_key(item)] = json.loads(item.value_json)
        for item in changes.remove:
            config.pop(_item_key(item), None)
    config.pop("_wandb", None)
    return config


def read_identity(run_folder: Path) -> dict[str, object]:
    """The identity of an offline run, and how it ended.

    Returns:
        id, project, name, entity, group, job_type, tags and notes; exit_code, None if it was never finished.
    """
    identity: dict[str, object] = {"exit_code": None}
    for record in _read_records(run_folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            identity |= {"id": run.run_id, "project": run.project, "name": run.display_name, "entity": run.entity}
            identity |= {"group": run.run_group, "job_type": run.job_type, "tags": [*run.tags], "notes": run.notes}
        elif kind == "exit":
            identity["exit_code"] = record.exit.exit_code
    return identity


def _read_records(run_folder: Path) -> Iterator[Any]:
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = run_folder.glob("run-*.wandb")
    for payload in _payloads(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(payload)
        yield record


def _item_key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _payloads(log: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, reassembled from their frames."""
    offset, payload = FILE_HEAD_BYTES, b""
    while offset < len(log):
        left_of_block = BLOCK_SIZE - offset % BLOCK_SIZE
        if left_of_block < FRAME_HEAD.size:  # too small for a head: filled with zeros
            offset += left_of_block
            continue
        checksum, length, kind = FRAME_HEAD.unpack_from(log, offset)
        offset += FRAME_HEAD.size
        body = log[offset : offset + length]
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum, "damaged, or read wrongly"
        payload += body
        offset += length
        if kind in (FULL, LAST):
            yield payload
            payload = b""
    assert not payload, "the file ends within a record"


def read_alerts(run_folder: Path) -> list[tuple[str, str]]:
    """Title and level of each alert of an offline run, in the order sent."""
    kinds = ((record.WhichOneof("record_type"), record) for record in _read_records(run_folder))
    return [(record.alert.title, record.alert.level) for kind, record in kinds if kind == "alert"]


def read_artifacts(run_folder: Path) -> dict[str, dict[str, int]]:
    """Name of each artifact of an offline run -> its files and their sizes (bytes)."""
    return {
        record.artifact.name: {entry.path: entry.size for entry in record.artifact.manifest.contents}
        for record in _read_records(run_folder)
        if record.WhichOneof("record_type") == "artifact"
    }


def read_system_metrics(run_folder: Path) -> set[str]:
    """Names of wandb's system metrics."""
    records = [record for record in _read_records(run_folder) if record.WhichOneof("record_type") == "stats"]
    return {item.key for record in records for item in record.stats.item}


def read_table(run_folder: Path, key: str) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of a table that an offline run logged incrementally."""
    columns: list[str] = []
    rows: list[list[object]] = []
    pieces = (run_folder / "files" / "media" / "table").glob(f"{key}_*.table.json")
    for piece in sorted(pieces, key=lambda path: int(path.name.removeprefix(f"{key}_").split("_")[0])):
        table = json.loads(piece.read_text(encoding="utf-8"))
        columns, rows = table["columns"], rows + table["data"]
    return columns, rows
