"""Reads what wandb wrote: the run that a run-*.wandb file holds, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from gr_sweep.tracking.wandb_file import read_payloads


def read_run(path: Path) -> dict[str, Any]:
    """What a run holds: run (the message), config, history (rows), summary, metrics, exit."""
    found: dict[str, Any] = {
        "config": {},
        "history": [],
        "summary": {},
        "metrics": [],
        "exit": None,
    }
    for payload in read_payloads(path):
        record = Record()
        record.ParseFromString(payload)
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
