"""Checkpoints written while training goes on are those that were asked for, and no failure is lost."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from smalti.core.errors import OutputError
from smalti.core.files import write_folder
from smalti.core.stored import is_intact, read_folder
from smalti.training import checkpoint
from smalti.training.checkpoint import BackgroundWriter, read_checkpoint, write_checkpoint


def layer(value: float = 1.0) -> nn.Conv2d:
    made = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
    nn.init.constant_(made.weight, value)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Nothing is written before this is set."""
    opened = Event()

    def write(path: Path, files: dict[str, bytes]) -> None:
        assert opened.wait(60)
        write_folder(path, files)

    monkeypatch.setattr(checkpoint, "write_folder", write)
    yield opened
    opened.set()


def test_the_files_are_those_of_a_write_that_is_waited_for(tmp_path: Path) -> None:
    state = {"moment": torch.arange(6.0).reshape(2, 3).T, "count": torch.tensor(3)}
    write_checkpoint(tmp_path / "one", 5, layer().state_dict(), state)
    with BackgroundWriter() as writer:
        writer.write(tmp_path / "other", 5, layer().state_dict(), state)
    one, other = (read_folder(tmp_path / run / "checkpoints" / "step-00000005") for run in ("one", "other"))
    assert one == other


def test_training_may_change_what_is_being_written(tmp_path: Path, gate: Event) -> None:
    trained, moment = layer(1.0), torch.ones(3)
    with BackgroundWriter() as writer:
        writer.write(tmp_path, 5, trained.state_dict(), {"moment": moment})
        nn.init.constant_(trained.weight, 2.0)
        moment.zero_()
        assert not (tmp_path / "checkpoints").exists()
        gate.set()
    found = read_checkpoint(tmp_path)
    assert torch.equal(found.model["weight"], layer(1.0).weight)
    assert torch.equal(found.state["moment"], torch.ones(3))


def test_the_next_write_waits_for_the_one_before(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        for step in range(1, 6):
            writer.write(tmp_path, step, layer().state_dict(), {})
            if step > 1:
                assert f"step-{step - 1:08d}" in steps(tmp_path)
    assert steps(tmp_path) == ["step-00000004", "step-00000005"]


def test_what_was_written_here_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(checkpoint, "is_intact", lambda path: read.append(path.name) or is_intact(path))
    write_checkpoint(tmp_path, 1, layer().state_dict(), {})
    with BackgroundWriter() as writer:
        for step in range(2, 5):
            writer.write(tmp_path, step, layer().state_dict(), {})
    assert read == ["step-00000001"]


def test_a_failure_is_raised_by_the_next_write_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BackgroundWriter()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        writer.write(tmp_path, 5, layer().state_dict(), {})
        with pytest.raises(OutputError, match=r"cannot write .*step-00000005; No space left"):
            writer.write(tmp_path, 6, layer().state_dict(), {})
    writer.write(tmp_path, 7, layer().state_dict(), {})
    writer.wait()
    writer.wait()
    assert steps(tmp_path) == ["step-00000007"]


def test_a_failure_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match="No space left"), BackgroundWriter() as writer:
        writer.write(tmp_path, 5, layer().state_dict(), {})


def test_a_failure_of_another_kind_is_an_output_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(tensors: object) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr(checkpoint, "to_safetensors", no_memory)
    with (
        pytest.raises(OutputError, match=r"cannot write a checkpoint; MemoryError: no room"),
        BackgroundWriter() as writer,
    ):
        writer.write(tmp_path, 5, layer().state_dict(), {})


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_waits_for_what_is_being_written(stop: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(stop), BackgroundWriter() as writer:  # noqa: PT012
        writer.write(tmp_path, 5, layer().state_dict(), {})
        raise stop
    assert read_checkpoint(tmp_path).step == 5


def test_where_the_last_write_failed_an_interruption_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError) as raised, BackgroundWriter() as writer:  # noqa: PT012
        writer.write(tmp_path, 5, layer().state_dict(), {})
        raise KeyboardInterrupt
    assert isinstance(raised.value.__context__, KeyboardInterrupt)
