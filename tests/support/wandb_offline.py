"""Reads what an offline Weights & Biases run wrote to disk.

The `run-*.wandb` file is a log in LevelDB's framing behind a header of wandb's own: blocks of 32 KiB hold
frames of a 7-byte head (checksum, length, type) and a body, and a record that does not fit what is left of
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
FILE_HEAD = struct.Struct("<4sHB")
FILE_HEAD_VALUES = (b":W&B", 0xBEE1, 0)
FRAME_HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_history(run_folder: Path) -> list[dict[str, object]]:
    """Return the history rows of an offline run, in the order written.

    A row holds the metrics and wandb's `_step`, `_timestamp` and `_runtime`. Values went through JSON, so a
    float without a fraction comes back as the equal integer. A nested metric's key joins its parts with ".".

    Args:
        run_folder: An `offline-run-*` folder.

    Raises:
        ValueError: If the folder has not exactly one run file, or the file has a broken frame or record.
        OSError: If the file cannot be read.
        ImportError: If wandb is not installed.
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

    Raises:
        ValueError: If the folder has not exactly one run file, or the file has a broken frame or record.
        OSError: If the file cannot be read.
        ImportError: If wandb is not installed.
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
    """What an offline run is called, and how it ended.

    Returns:
        id, project, name, entity, group, job_type, tags and notes; exit_code, None if it was never finished.

    Raises:
        ValueError: If the folder has not exactly one run file, or the file has a broken frame or record.
        OSError: If the file cannot be read.
        ImportError: If wandb is not installed.
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
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    files = sorted(run_folder.glob("run-*.wandb"))
    if len(files) != 1:
        raise ValueError(f"{run_folder} has {len(files)} run-*.wandb files, not one")
    for payload in split_records(files[0].read_bytes()):
        record = messages.Record()
        try:
            record.ParseFromString(payload)
        except decode_error as error:
            raise ValueError(f"{files[0]}: a record is no wandb message: {error}") from error
        yield record


def _item_key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def split_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file's bytes, put together from their frames.

    Args:
        log: The whole file.

    Raises:
        ValueError: If the file's head, or a frame's length, type, order or checksum is wrong.
    """
    if len(log) < FILE_HEAD.size or FILE_HEAD.unpack_from(log) != FILE_HEAD_VALUES:
        raise ValueError("not a wandb run file: its head is wrong")
    offset = FILE_HEAD.size
    parts: list[bytes] | None = None
    while offset < len(log):
        block_end = offset - offset % BLOCK_SIZE + BLOCK_SIZE
        if block_end - offset < FRAME_HEAD.size:  # too small for a head: filled with zeros
            if any(log[offset:block_end]):
                raise ValueError(f"byte {offset}: the fill at a block's end is not zero")
            offset = block_end
            continue
        kind, body = _read_frame(log, offset, min(block_end, len(log)))
        offset += FRAME_HEAD.size + len(body)
        if (kind in (FULL, FIRST)) != (parts is None):
            raise ValueError(f"byte {offset}: a frame of type {kind} is out of order")
        parts = [*(parts or []), body]
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = None
    if parts is not None:
        raise ValueError("the file ends within a record")


def _read_frame(log: bytes, offset: int, end: int) -> tuple[int, bytes]:
    if end - offset < FRAME_HEAD.size:
        raise ValueError(f"byte {offset}: the file ends within a frame's head")
    checksum, length, kind = FRAME_HEAD.unpack_from(log, offset)
    start = offset + FRAME_HEAD.size
    if kind not in (FULL, FIRST, MIDDLE, LAST):
        raise ValueError(f"byte {offset}: a frame has the unknown type {kind}")
    if start + length > end:
        raise ValueError(f"byte {offset}: a frame of {length} bytes reaches beyond its block or the file")
    body = log[start : start + length]
    if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
        raise ValueError(f"byte {offset}: a frame's checksum does not match")
    return kind, body
