"""Checkpoints that hold what is no number, and files that hold no weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from smalti.core.errors import CheckpointError, NumericError
from smalti.core.files import write_folder
from smalti.core.stored import read_folder
from smalti.training.checkpoint import BackgroundWriter, read_checkpoint, write_checkpoint
from smalti.weights.read import read_source
from tests.faults.trial import save, value_of


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
        write_checkpoint(tmp_path, 20, layer.state_dict(), state)
    with BackgroundWriter() as writer:
        writer.write(tmp_path, 20, layer.state_dict(), state)
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
