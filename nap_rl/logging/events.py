"""TensorBoard's event file: scalars, the layout of the custom-scalars page, the configuration as text and HParams."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from nap_rl.logging.files import GrowingFile
from nap_rl.logging.tags import CHARTS

# tensorboard is imported in functions: it is slow to import, and a run without it never needs it.


@final
class EventFile:
    """TensorBoard's events. Each is written at once and in the calling thread, so errors are raised where they happen.

    Args:
        purge_step: readers forget what earlier files of the folder hold from this step on.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._file: GrowingFile | None = None  # made by the first write

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars at `step`. Raises OSError if they have to wait for the disk."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def describe(self, config: Mapping[str, Any]) -> None:
        """Charts of the custom-scalars page; `config` as text and HParams. Raises OSError if they have to wait."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        leaves = dict(_leaves(config))
        values = [_layout(), _text("config", leaves), _hparams(leaves)]
        self._write(Event(wall_time=time.time(), summary=Summary(value=values)))

    def artifact(self, path: Path) -> None:
        """Nothing: the events stand beside the files."""

    def finish(self) -> None:
        """Nothing: each event is written at once."""

    def sync(self) -> None:
        """As `GrowingFile.sync`."""
        if self._file is not None:
            self._file.sync()

    def _write(self, event: Any) -> None:
        if self._file is None:
            self._file = GrowingFile(_new_event_file(self._folder))
            self._file.append(b"".join(_record(each) for each in self._opening()))
        self._file.append(_record(event))

    def _opening(self) -> list[Any]:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        version = Event(wall_time=time.time(), step=self._purge_step or 0, file_version="brain.Event:2")
        if self._purge_step is None:
            return [version]
        start = SessionLog(status=SessionLog.START)
        return [version, Event(wall_time=time.time(), step=self._purge_step, session_log=start)]


def _layout() -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=chart, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tags}$"]))
                for chart, tags in charts.items()
            ],
        )
        for title, charts in CHARTS.items()
    ]
    layout = layout_pb2.Layout(category=categories)
    return _strings(metadata.CONFIG_SUMMARY_TAG, metadata.PLUGIN_NAME, [layout.SerializeToString()])


def _text(tag: str, leaves: Mapping[str, Any]) -> Any:
    from tensorboard.plugins.text import metadata

    rows = "\n".join(f"| {key} | {value} |" for key, value in leaves.items())
    return _strings(tag, metadata.PLUGIN_NAME, [f"| key | value |\n|---|---|\n{rows}\n".encode()])


def _strings(tag: str, plugin: str, texts: list[bytes]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin)),
        tensor=TensorProto(dtype=DT_STRING, string_val=texts),
    )


def _hparams(leaves: Mapping[str, Any]) -> Any:
    """The start of an HParams session. Without a list of all hyperparameters, the plugin gathers them from the runs."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for key, value in leaves.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, (int, float)):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = str(value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return Summary.Value(
        tag=metadata.SESSION_START_INFO_TAG,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def _new_event_file(folder: Path) -> Path:
    """Readers take files in the order of their names, so a new one has a later second than all before it."""
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*")]
    seconds = [int(parts[3]) for parts in names if len(parts) > 3 and parts[3].isdigit()]
    second = max([int(time.time()), *(before + 1 for before in seconds)])
    return folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
