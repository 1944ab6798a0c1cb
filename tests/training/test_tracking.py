"""What a run tells an experiment tracker: every step once, whatever happens to the run or to the tracker."""

import importlib.machinery
import inspect
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.training.trackers import open_tracker, require_tracker
from smalti.training.tracking import STATE, Picture, Tracking

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


class Kept:
    """A tracker that keeps what it is told; it can forget, or not."""

    def __init__(self, forgets: bool = False) -> None:
        self.id, self.forgets, self.opened = "abc", forgets, list[str]()
        self.steps, self.seen, self.settings = list[tuple[int, dict[str, float]]](), list[int](), dict[str, Any]()

    def __call__(self, run_id: str) -> "Kept":
        self.opened.append(run_id)
        return self

    def truncate_after(self, step: int) -> bool:
        if self.forgets:
            self.steps = [one for one in self.steps if one[0] <= step]
        return self.forgets

    def configuration(self, settings: Mapping[str, Any]) -> None:
        self.settings |= settings

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append((step, dict(values)))

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        self.seen.append(step)

    def close(self) -> None:
        self.opened.append("closed")


def told(
    tracker: Any, folder: Path, steps: list[int], done: int = 0, history: list[dict[str, Any]] | None = None
) -> None:
    """A part of a run that logs these steps, each as two lines."""
    with Tracking("kept", tracker, folder, done, history or [], {"seed": 1}, Log()) as tracking:
        for step in steps:
            tracking.record({"stage": "mim", "step": step, "knn": 0.5})
            tracking.record({"stage": "mim", "step": step, "loss": float(step)})
            tracking.end_step(step)


def test_everything_of_a_step_is_sent_at_once_and_the_configuration_once(tmp_path: Path) -> None:
    tracker = Kept()
    told(tracker, tmp_path, [1, 2])
    told(tracker, tmp_path, [3], done=2)
    assert tracker.steps == [(step, {"knn": 0.5, "loss": float(step)}) for step in (1, 2, 3)]
    assert tracker.settings == {"seed": 1}
    assert tracker.opened == ["", "closed", "abc", "closed"]
    assert json.loads((tmp_path / STATE).read_text()) == {"tracker": "kept", "id": "abc", "step": 3}


@pytest.mark.parametrize("forgets", [True, False])
def test_steps_that_a_killed_run_repeats_are_there_once(tmp_path: Path, forgets: bool) -> None:
    tracker = Kept(forgets)
    told(tracker, tmp_path, [1, 2, 3, 4])  # killed after step 4, and its last checkpoint is of step 2
    told(tracker, tmp_path, [3, 4, 5], done=2, history=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    assert [step for step, _ in tracker.steps] == [1, 2, 3, 4, 5]


def test_a_tracker_that_comes_later_is_told_what_has_been(tmp_path: Path) -> None:
    tracker = Kept()
    both: list[dict[str, Any]] = [{"step": 1, "knn": 0.5}, {"step": 1, "loss": 1.0}]
    told(tracker, tmp_path, [3], done=2, history=[*both, {"step": 2, "loss": 2.0, "stage": "mim"}])
    assert tracker.steps[:2] == [(1, {"knn": 0.5, "loss": 1.0}), (2, {"loss": 2.0})]
    assert [step for step, _ in tracker.steps] == [1, 2, 3]


@pytest.mark.parametrize("where", ["open", "scalars", "close"])
def test_a_tracker_that_fails_is_one_warning(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> Any:
        raise OSError("No space left\non device")

    tracker: Any = Kept()
    if where != "open":
        setattr(tracker, where, fail)
    told(fail if where == "open" else tracker, tmp_path, [1, 2, 3])
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "kept: OSError: No space left on device; the run goes on" in said


def test_a_tracker_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("smalti.training.tracking._END", 0.05)
    monkeypatch.setattr("smalti.training.tracking._MAX_WAITING", 2)
    hanging, tracker = threading.Event(), Kept()
    tracker.scalars = lambda *_: bool(hanging.wait(20))  # type: ignore[method-assign,assignment]
    told(tracker, tmp_path, list(range(1, 9)))
    assert capsys.readouterr().err.count("warning") == 1
    hanging.set()


def test_a_missing_package_is_one_line_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_tracker("none")
    with pytest.raises(UsageError, match=r"--log wandb needs wandb, which is not installed; pip install wandb$"):
        require_tracker("wandb")
    with pytest.raises(UsageError, match=r"pip install 'smalti\[log\]'$"):
        require_tracker("tensorboard")


def events(folder: Path) -> list[tuple[int, str, Any]]:
    """Step, tag and value of every event below `folder/tensorboard`, read with TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found.append((event.step, value.tag, getattr(value, kind)))
    return found


def test_event_files_are_read_back_and_go_on_where_a_killed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def part(steps: list[int], done: int) -> None:
        def opened(run_id: str) -> Any:
            return open_tracker("tensorboard", tmp_path, run_id)

        with Tracking("tensorboard", opened, tmp_path, done, [], {"seed": 1}, Log()) as tracking:
            for step in steps:
                tracking.record({"step": step, "loss": step / 4})
                tracking.show({"predictions": RED} if step % 2 == 0 else {})
                tracking.end_step(step)

    part([1, 2, 3, 4], done=0)
    (first,) = (tmp_path / "tensorboard").iterdir()
    with open(first, "ab") as file:
        file.write(b"\x18\0\0\0\0\0\0\0half a record")  # it was killed while it wrote
    part([3, 4, 5], done=2)
    found = events(tmp_path)
    assert [(step, value) for step, tag, value in found if tag == "loss"] == [(n, n / 4) for n in (1, 2, 3, 4, 5)]
    pictures = [(step, value) for step, tag, value in found if tag == "predictions"]
    assert [step for step, _ in pictures] == [2, 4]
    assert (pictures[0][1].width, pictures[0][1].height) == (6, 4)
    assert [tag for _, tag, _ in found].count("configuration/text_summary") == 1


CALLS: list[tuple[str, dict[str, Any]]] = []


def signed(name: str, signature: str, answer: Any = None) -> Any:
    """A function that keeps what it is called with, if that fits the signature of the real one."""
    space: dict[str, Any] = {}
    exec(f"def real({signature}): pass", space)

    def call(*given: Any, **named: Any) -> Any:
        bound = inspect.signature(space["real"]).bind(*given, **named)
        CALLS.append((name, dict(bound.arguments)))
        return answer

    return call


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(members)
    return made


def fake_wandb() -> ModuleType:
    """As of wandb 0.31."""
    run = SimpleNamespace(
        log=signed("log", "data, step=None, commit=None"),
        finish=signed("finish", "exit_code=None"),
        config=SimpleNamespace(update=signed("config", "d, allow_val_change=None")),
    )
    init = "entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, mode=None, "
    init += "force=None, reinit=None, resume=None, settings=None"
    image = "data_or_path, mode=None, caption=None, grouping=None"
    return module("wandb", init=signed("init", init, run), Image=signed("image", image, "a picture"))


def fake_mlflow() -> ModuleType:
    """As of mlflow 3.18."""
    run = SimpleNamespace(info=SimpleNamespace(run_id="made by mlflow"))
    start = "run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None"
    return module(
        "mlflow",
        set_experiment=signed("experiment", "experiment_name=None, experiment_id=None, trace_location=None"),
        start_run=signed("init", start, run),
        log_params=signed("config", "params, synchronous=None, run_id=None"),
        log_metrics=signed("log", "metrics, step=None, synchronous=None, run_id=None, timestamp=None"),
        log_image=signed("image", "image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=False"),
        end_run=signed("finish", "status='FINISHED'"),
    )


def fake_trackio() -> ModuleType:
    """As of trackio 0.43."""
    run = SimpleNamespace(
        log=signed("log", "metrics, step=None"),
        finish=signed("finish", ""),
        config=SimpleNamespace(update=signed("config", "given")),
    )
    init = (
        "project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None, config=None, "
    )
    init += "resume='never', settings=None, private=None, embed=True, auto_log_gpu=None, gpu_log_interval=10.0, "
    init += "auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None, webhook_min_level=None"
    return module("trackio", init=signed("init", init, run), Image=signed("image", "value, caption=None", "a picture"))


@pytest.mark.parametrize(
    ("name", "fake", "quiet"),
    [
        ("wandb", fake_wandb, {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}),
        ("mlflow", fake_mlflow, {"MLFLOW_DISABLE_TELEMETRY": "true"}),
        ("trackio", fake_trackio, {"HF_HUB_DISABLE_TELEMETRY": "1"}),
    ],
)
def test_others_are_called_as_they_want_to_be_and_kept_from_the_network(
    name: Any, fake: Any, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, fake())
    for variable in quiet:
        monkeypatch.setenv(variable, "to be restored")
        monkeypatch.delenv(variable)
    folder = tmp_path / "my-run"
    folder.mkdir()
    CALLS.clear()
    require_tracker(name)

    def opened(run_id: str) -> Any:
        return open_tracker(name, folder, run_id)

    log = Log()
    for steps, done in (([1, 2], 0), ([3], 2)):
        with Tracking(name, opened, folder, done, [], {f"field{n}": n for n in range(120)}, log) as tracking:
            for step in steps:
                tracking.record({"step": step, "loss": 0.5})
                tracking.show({"predictions": RED} if step == 2 else {})
                tracking.end_step(step)
    assert {variable: os.environ[variable] for variable in quiet} == quiet
    said = [call for call, _ in CALLS]
    assert said.count("finish") == 2
    assert said.count("image") == 1
    logged = [(given["step"], given.get("metrics", given.get("data"))) for call, given in CALLS if call == "log"]
    assert [step for step, values in logged if values == {"loss": 0.5}] == [1, 2, 3]
    settings: dict[str, Any] = {}
    for call, given in CALLS:
        if call == "config":
            settings |= next(value for value in given.values() if isinstance(value, dict))
    assert len(settings) == 120
    first, second = (given for call, given in CALLS if call == "init")
    if name == "mlflow":
        assert (first, second) == ({"run_name": "my-run"}, {"run_id": "made by mlflow"})
    else:
        assert first == second, "a run that goes on is the same run there"
        assert first["resume"] == "allow"
        assert first["project"] == "smalti"


def test_a_mode_that_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb())
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    open_tracker("wandb", tmp_path, "")
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_ERROR_REPORTING"]) == ("online", "true")
