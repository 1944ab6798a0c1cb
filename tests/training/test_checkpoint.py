"""Checkpoints are whole, verified, and refuse what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from smalti.core.errors import CheckpointError
from smalti.core.files import REPLACED
from smalti.training.checkpoint import load_weights, read_checkpoint, write_checkpoint


def write(run: Path, step: int, value: float = 0.0) -> Path:
    layer = nn.Linear(2, 3)
    nn.init.constant_(layer.weight, value)
    return write_checkpoint(
        run, step, layer.state_dict(), {"moment": torch.full((2, 2), value), "count": torch.tensor(step)}
    )


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    folder = write_checkpoint(tmp_path, 70, layer.state_dict(), {"moment": torch.arange(4.0)})
    assert folder == tmp_path / "checkpoints" / "step-00000070"
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "state.json",
        "state.safetensors",
    ]
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.step == 70
    assert set(checkpoint.model) == {"weight", "bias"}
    assert torch.equal(checkpoint.model["weight"], layer.weight)
    assert torch.equal(checkpoint.state["moment"], torch.arange(4.0))


def test_persistent_buffers_are_kept_with_their_type_and_others_are_not(tmp_path: Path) -> None:
    layer, fresh = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    layer.register_buffer("scratch", torch.ones(3), persistent=False)
    layer(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    write_checkpoint(tmp_path, 1, layer.state_dict(), {})
    checkpoint = read_checkpoint(tmp_path)
    assert set(checkpoint.model) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert checkpoint.model["num_batches_tracked"].dtype == torch.int64
    load_weights(fresh, checkpoint.model, "here")
    assert torch.equal(fresh.running_mean, layer.running_mean)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="running_mean is missing"):
        load_weights(fresh, {n: v for n, v in checkpoint.model.items() if n != "running_mean"}, "here")


def test_weights_that_are_not_contiguous_are_written_too(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path, 1, layer.state_dict(), {})
    assert torch.equal(read_checkpoint(tmp_path).model["weight"], layer.weight)


def test_the_two_newest_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        write(tmp_path, step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000020", "step-00000100"]
    assert read_checkpoint(tmp_path).step == 100


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 5, 1.0)
    write(tmp_path, 5, 2.0)
    assert float(read_checkpoint(tmp_path).model["weight"][0, 0]) == 2.0


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_newest_falls_back_to_the_older(tmp_path: Path, name: str) -> None:
    write(tmp_path, 10, 1.0)
    path = write(tmp_path, 20, 2.0) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.step == 10
    assert float(checkpoint.state["moment"][0, 0]) == 1.0


def test_a_missing_file_falls_back_to_the_older(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (write(tmp_path, 20) / "state.safetensors").unlink()
    assert read_checkpoint(tmp_path).step == 10


def test_where_all_are_damaged_the_error_names_them(tmp_path: Path) -> None:
    for step in (10, 20):
        (write(tmp_path, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"no usable checkpoint in .*; damaged: step-00000020 \(model\.safetensors has 0 bytes, not \d+\), step-",
    ):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_folder_without_checkpoints_is_an_error(tmp_path: Path, folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoints/step-\* there; give the folder of a finished run"):
        read_checkpoint(tmp_path / folder)


def test_half_written_and_foreign_folders_are_not_looked_at(tmp_path: Path) -> None:
    write(tmp_path, 10)
    for name in (".step-00000020.abc", "step-30", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert read_checkpoint(tmp_path).step == 10


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    json.loads((folder / "state.json").read_text())
    for name in ("model.safetensors", "state.safetensors"):
        content = (folder / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert all(set(entry) == {"dtype", "shape", "data_offsets"} for entry in header.values())


def test_load_weights_copies_in_place() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    parameter = target.weight
    load_weights(target, dict(source.state_dict()), "here")
    assert target.weight is parameter
    assert torch.equal(target.weight, source.weight)
    assert target.weight.requires_grad


@pytest.mark.parametrize(
    ("weights", "cause"),
    [
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, r"weight is \(3, 4\), expected \(3, 2\)"),
        ({"weight": torch.zeros(3, 2)}, "bias is missing"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "scale": torch.zeros(1)}, "scale is not known"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(weights: dict[str, torch.Tensor], cause: str) -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(CheckpointError, match=f"the weights of run do not fit; {cause}"):
        load_weights(layer, weights, "run")
    assert torch.equal(layer.weight, before)


def test_a_checkpoint_that_was_set_aside_while_another_took_its_place_can_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 10, 3.0)
    aside = folder.rename(folder.with_name(f"{folder.name}{REPLACED}"))
    assert read_checkpoint(aside).step == 10
