"""TensorBoard, Weights & Biases, MLflow and Trackio behind one protocol.

All of them write on this machine. One that can send over a network does so only where its own environment variables ask
for it: WANDB_MODE=online, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL.
"""

import contextlib
import importlib.util
import os
import platform
import struct
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from smalti.core.errors import UsageError
from smalti.training.tracking import Picture, Tracker

TrackerName: TypeAlias = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
_PROJECT = "smalti"
_MAX_PARAMS = 100
"""Parameters that MLflow takes at a time."""
_QUIET = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
    "mlflow": {"MLFLOW_DISABLE_TELEMETRY": "true"},
    "trackio": {"HF_HUB_DISABLE_TELEMETRY": "1"},
}
"""Environment variables that keep a package from the network, unless they have been set otherwise."""


def require_tracker(name: TrackerName) -> None:
    """Check that the package of a tracker is installed, before a run begins.

    Raises:
        UsageError: it is not.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        package = "'smalti[log]'" if name == "tensorboard" else name
        raise UsageError(f"--log {name} needs {name}, which is not installed", fix=f"pip install {package}")


def open_tracker(name: TrackerName, folder: Path, run_id: str) -> Tracker:
    """Open a run in a tracker.

    Args:
        folder: the run folder, whose name the run has there.
        run_id: of the run, if the tracker has it already; else empty.
    """
    for variable, value in _QUIET.get(name, {}).items():
        os.environ.setdefault(variable, value)
    with contextlib.redirect_stdout(sys.stderr):  # what they say on opening is no result of ours
        if name == "tensorboard":
            return TensorBoard(folder)
        if name == "wandb":
            return Wandb(folder, run_id)
        return MLflow(folder, run_id) if name == "mlflow" else Trackio(folder, run_id)


class TensorBoard(Tracker):
    """Event files in `tensorboard` of the run folder, one for each part of a run that was interrupted."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.id, self.folder, self.event = "tensorboard", folder / "tensorboard", Event
        self.folder.mkdir(exist_ok=True)
        self.earlier = sorted(self.folder.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        self.file = open(self.folder / name, "xb")  # noqa: SIM115
        self.writer = RecordWriter(self.file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def truncate_after(self, step: int) -> bool:
        """Cut the files of earlier parts where the first later step begins."""
        for path in self.earlier:
            os.truncate(path, self._end(path.read_bytes(), step))
        return True

    def configuration(self, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import text

        lines = [f"| {name} | `{value}` |" for name, value in settings.items()]
        self._log(0, text("configuration", "\n".join(["| field | value |", "|---|---|", *lines])))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            self._log(step, scalar(name, value))

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        from torch.utils.tensorboard.summary import image

        for name, picture in pictures.items():
            self._log(step, image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        self.file.close()

    def _log(self, step: int, summary: Any) -> None:
        self._write(self.event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self.writer.write(event.SerializeToString())
        self.file.flush()

    def _end(self, records: bytes, step: int) -> int:
        """Where the whole records of steps up to this one end: each is its length, a checksum, an event, a checksum."""
        end = 0
        while end + 12 <= len(records):
            (length,) = struct.unpack_from("<Q", records, end)
            after = end + 12 + length + 4
            if after > len(records) or self.event.FromString(records[end + 12 : after - 4]).step > step:
                break
            end = after
        return end


class Wandb(Tracker):
    """Weights & Biases: offline, in `wandb` of the run folder, unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, run_id: str) -> None:
        import wandb

        self.id, self.package = run_id or uuid.uuid4().hex[:12], wandb
        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        quiet = {"silent": True, "console": "off"}
        self.run = wandb.init(project=project, dir=folder, id=self.id, name=folder.name, resume="allow", settings=quiet)

    def configuration(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(dict(settings), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        self.run.log({name: self.package.Image(picture) for name, picture in pictures.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """MLflow: in its local store, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, run_id: str) -> None:
        import mlflow

        self.package = mlflow
        if run_id:
            self.id = mlflow.start_run(run_id=run_id).info.run_id
        else:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
            self.id = mlflow.start_run(run_name=folder.name).info.run_id

    def configuration(self, settings: Mapping[str, Any]) -> None:
        names = sorted(settings)
        for start in range(0, len(names), _MAX_PARAMS):
            self.package.log_params({name: settings[name] for name in names[start : start + _MAX_PARAMS]})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.package.log_metrics(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        for name, picture in pictures.items():
            self.package.log_image(picture, key=name, step=step)

    def close(self) -> None:
        self.package.end_run()


class Trackio(Wandb):
    """Trackio, with the interface of Weights & Biases: in its local folder, or where TRACKIO_SPACE_ID or
    TRACKIO_SERVER_URL say.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        import trackio

        self.id, self.package = run_id or f"{folder.name}-{uuid.uuid4().hex[:6]}", trackio
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        self.run = trackio.init(
            project, name=self.id, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def configuration(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(settings)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()
