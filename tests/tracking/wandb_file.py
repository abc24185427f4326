"""Reads what wandb wrote: the records of a run-*.wandb file, for the tests of this folder.

The file is a log of records in the LevelDB format (blocks of 32 KiB; in them checksum, length, type
and payload) behind a header of 7 bytes; each record is a protobuf message.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK_BYTES = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Record]:
    """The records in the order in which they were written."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, []
    while position < len(content):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        payload = content[position + 7 : position + 7 + length]
        position += 7 + length
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        parts.append(payload)
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read_run(path: Path) -> dict[str, Any]:
    """What a run holds: run (the message), config, history (rows), summary, metrics, exit."""
    found: dict[str, Any] = {
        "config": {},
        "history": [],
        "summary": {},
        "metrics": [],
        "exit": None,
    }
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "history":
            found["history"].append(_items(record.history.item))
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "metric":
            found["metrics"].append(record.metric)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
