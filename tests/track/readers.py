"""What trackers hold, read back: TensorBoard by its own reader, W&B from the bytes of its file."""

import importlib
import json
from pathlib import Path

BLOCK, HEADER = 32768, 7


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar by its tag, as TensorBoard shows them."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, round(event.value, 6)) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    protocol = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        parts.append(data[position + HEADER : position + HEADER + length])
        position += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = protocol.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read_wandb(path: Path) -> list[dict[str, float]]:
    """The rows of the run's history, without what W&B adds."""
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
