"""Checkpoints that hold no numbers, files that hold no weights, and folders of another kind."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from smalti.core.errors import CheckpointError, NumericError
from smalti.core.files import read_folder, write_folder
from smalti.runs.source import read_source
from smalti.training.checkpoint import BackgroundWriter, read_checkpoint, write_checkpoint
from tests.faults.trial import save, value_of


class Canary:
    """A pickle that makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def refused(place: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        read_source(str(place))
    return str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_b11_what_is_no_number_is_not_saved(value: float, where: str, tmp_path: Path) -> None:
    save(tmp_path, 10, 2.0)
    layer, state = nn.Linear(2, 2), {"moment": torch.zeros(3)}
    with torch.no_grad():
        (layer.weight if where == "weight" else state["moment"]).view(-1)[1] = value
    message = (
        rf"^step 20 is not saved; {where} is not finite; what was saved before it is whole; go on from there with a"
        r" lower --optimiser\.lr and --allow-inexact$"
    )
    with pytest.raises(NumericError, match=message):
        write_checkpoint(tmp_path, 20, layer, state)
    with BackgroundWriter() as writer:
        writer.write(tmp_path, 20, layer, state)
        with pytest.raises(NumericError, match=message):
            writer.wait()
    assert value_of(tmp_path) == (10, 2.0)


def test_b11_what_is_no_number_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an older version could write it, digest and all."""
    from safetensors.torch import load
    from safetensors.torch import save as as_bytes

    save(tmp_path, 10, 2.0)
    save(tmp_path, 20, 3.0)
    folder = tmp_path / "checkpoints" / "step-00000020"
    files = read_folder(folder)
    model = load(files["model.safetensors"])
    model["bias"][0] = float("nan")
    write_folder(folder, files | {"model.safetensors": as_bytes(model)})
    assert value_of(tmp_path) == (10, 2.0)
    assert capsys.readouterr().err == (
        f"{tmp_path}: damaged: step-00000020 (bias is not finite); step-00000010 is used in its place\n"
    )
    (tmp_path / "checkpoints" / "step-00000010" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*; damaged: step-00000020 \(bias is not fin"):
        read_checkpoint(tmp_path)


def test_b12_the_state_of_an_optimiser_is_no_model(tmp_path: Path) -> None:
    save(tmp_path, 10, 2.0)
    path = tmp_path / "checkpoints" / "step-00000010" / "state.safetensors"
    assert refused(path).startswith(
        f"{path} has names of neither timm nor transformers; it has no blocks.0 and no encoder.layer.0, but moment;"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 5\n",
            "a pointer of Git LFS, without the file that it points to (git lfs pull)",
        ),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page, perhaps an error of a server"),
        (b"<html><body>busy</body></html>", "a web page, perhaps an error of a server"),
    ],
)
def test_b15_a_page_or_a_pointer_is_no_file_of_weights(content: bytes, said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path) == f"{tmp_path / name} holds no weights; it is {said}; get the file again"


def test_b18_a_folder_of_distributed_checkpoints_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Canary(marker)))
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"\0" * 100)
    assert "neither model.safetensors nor pytorch_model.bin is there" in refused(tmp_path / "dcp")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        read_checkpoint(tmp_path / "dcp")
    assert not marker.exists()
    pickle.loads((tmp_path / "dcp" / ".metadata").read_bytes())
    assert marker.exists(), "the canary would have told"
