"""Pickled networks are read without running anything: honest files come out whole, all others are refused."""

import functools
import importlib
import io
import operator
import os
import pickle
import random
import re
import struct
import subprocess
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.core.errors import CheckpointError
from smalti.tokenizers.dalle import DallE
from smalti.weights.saved_network import SavedNetwork, read_network, read_state_dict
from tests.weights.published import (
    Conv2d,
    Encoder,
    Outside,
    Reduced,
    archive,
    as_dall_e,
    network,
    parameter,
    pickled,
    publish,
    storage,
)

CLASSES = frozenset({"dall_e.encoder.Encoder", "dall_e.utils.Conv2d"})
TINY = DallE(vocab_size=6, stride=4, in_chans=1, width=4, depth=1, code_width=2)
MAGIC = 0x1950A86A20F9469CFC6C
FOUR = struct.pack("<4f", 1, 2, 3, 4)


def read(data: bytes, folder: Path) -> SavedNetwork:
    path = folder / "encoder.pkl"
    path.write_bytes(data)
    return read_network(path, CLASSES)


def refused(data: bytes, folder: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        read(data, folder)
    message = str(refusal.value)
    assert message.startswith("encoder.pkl ")
    assert "nothing was run" in message
    assert len(message) < 400
    return message


# Honest files


@pytest.mark.parametrize("protocol", [2, 4])
def test_parameters_come_out_by_name_whatever_their_layout(tmp_path: Path, protocol: int) -> None:
    turned = parameter(storage(), 0, (2, 2), (1, 2))
    inner = Conv2d.__new__(Conv2d)
    inner.__dict__.update(_parameters={"w": turned, "b": parameter(storage(), 1, (2,), (2,))}, _modules={})
    made = network(
        _modules=OrderedDict(blocks=inner), device=torch.device("cpu"), kept=set(), n_hid=-(2**40), share=0.5
    )
    found = read(archive(pickled(made, protocol), {"0": FOUR}), tmp_path)
    assert found.kind == "dall_e.encoder.Encoder"
    assert {name: value.tolist() for name, value in found.parameters.items()} == {
        "blocks.w": [[1, 3], [2, 4]],
        "blocks.b": [2, 4],
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_number_format_becomes_float32(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    made = Encoder()
    made.w = torch.nn.Parameter(torch.tensor([0.5, -2, 3], dtype=dtype))
    with as_dall_e():
        torch.save(made, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zipped)
    found = read_network(tmp_path / "encoder.pkl", CLASSES).parameters["w"]
    assert found.dtype == torch.float32
    assert found.tolist() == [0.5, -2, 3]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [None, "model", "state_dict"])
def test_tensors_of_a_state_dict_come_out_by_name(tmp_path: Path, zipped: bool, inside: str | None) -> None:
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))  # with versions, and a count of batches
    weights = made.state_dict()
    kept: Any = weights if inside is None else {inside: weights, "epoch": 3}
    torch.save(kept, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "weights.pth")
    assert found.keys() == weights.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, weights[name]) for name, value in found.items())


def test_a_state_dict_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    for name, payload in armed(canary).items():
        path.write_bytes(archive(pickled({"a": storage(), "b": payload})))
        with pytest.raises(
            CheckpointError,
            match=rf"weights.pth asks for [\w.]+\.{name.split('.')[-1]}; weights need nothing of the kind; nothing",
        ):
            read_state_dict(path)
    for held, message in ({"a": 3}, "describes a parameter that is not in"), ([3], "it holds no state dict"):
        path.write_bytes(archive(pickled(held)))
        with pytest.raises(CheckpointError, match=rf"weights.pth cannot be read; .*{message}.*; nothing was run"):
            read_state_dict(path)
    assert not canary.exists()


# Hostile pickles


def armed(canary: Path) -> dict[str, Reduced]:
    """Objects that leave a file behind where they are unpickled, by the name that the refusal has to mention."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        f"{os.system.__module__}.system": Reduced(os.system, touch),
        "builtins.eval": Reduced(eval, code),
        "builtins.exec": Reduced(exec, code),
        "io.open": Reduced(open, str(canary), "w"),
        "subprocess.check_output": Reduced(subprocess.check_output, ["touch", str(canary)]),
        "_pickle.loads": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, touch))),
    }


def unarmed() -> dict[str, Reduced]:
    """What other attacks begin with."""
    return {
        "builtins.getattr": Reduced(getattr, [], "sort"),
        "importlib.import_module": Reduced(importlib.import_module, "this"),
        "torch.serialization.load": Reduced(torch.load, "other.pkl"),
        "torch.hub.load": Reduced(torch.hub.load, "folder", "model"),
        "functools.partial": Reduced(functools.partial, os.system, "true"),
        "operator.attrgetter": Reduced(operator.attrgetter, "system"),
        "collections.defaultdict": Reduced(defaultdict, list),
        "torch._utils._rebuild_device_tensor_from_numpy": Reduced(torch._utils._rebuild_device_tensor_from_numpy, []),
    }


NAMES = sorted(armed(Path("canary")) | unarmed())


@pytest.mark.parametrize("name", sorted(armed(Path("canary"))))
def test_the_canary_dies_where_the_payload_is_unpickled(name: str, tmp_path: Path) -> None:
    """Otherwise the next tests could not fail."""
    canary = tmp_path / "canary"
    result = pickle.loads(pickle.dumps(armed(canary)[name]))
    assert canary.exists()
    if hasattr(result, "close"):
        result.close()


@pytest.mark.parametrize("name", NAMES)
def test_no_payload_is_run_wherever_it_stands(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = (armed(canary) | unarmed())[name]
    inside = network(_modules=OrderedDict(blocks=payload))
    as_weight = network(_parameters={"w": payload})
    attacks = [pickle.dumps(payload, protocol) for protocol in range(6)]
    attacks += [archive(pickle.dumps(payload, protocol)) for protocol in range(6)]
    attacks += [archive(pickled(thing, protocol)) for thing in (inside, as_weight) for protocol in (2, 3, 4, 5)]
    attacks += [archive(pickled(Outside(payload))), archive(pickled(Outside(("storage", payload, "0", "cpu", 4))))]
    attacks += [old_file(inside), old_file(network(), machine=payload), old_file(network(), keys=payload)]
    for attack in attacks:
        message = refused(attack, tmp_path)
        # Old protocols call modules as Python 2 did: cPickle, commands.
        expected = rf"encoder.pkl asks for [\w.]+\.{name.split('.')[-1]}; this is no file of weights; nothing was run"
        assert re.fullmatch(expected, message)
        assert not canary.exists()


def old_file(root: Any, machine: Any = None, keys: Any = (), storages: bytes = b"", magic: int = MAGIC) -> bytes:
    """The format of torch before 1.6."""
    machine = {"little_endian": True} if machine is None else machine
    return b"".join(map(pickled, (magic, 1001, machine, root, list(keys) if keys == () else keys))) + storages


def test_the_command_line_names_the_function(tmp_path: Path) -> None:
    expected = "encoder.pkl asks for posix.system; this is no file of weights; nothing was run"
    assert refused(b"cposix\nsystem\n(S'true'\ntR.", tmp_path) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'true'\niposix\nsystem\n.", "asks for the operation STRING"),
        (b"(\x8c\x04trueiposix\nsystem\n.", "asks for posix.system"),
        (b"(icollections\nOrderedDict\n.", "asks for collections.OrderedDict"),
        (b"(ccollections\nOrderedDict\no.", "asks for the operation OBJ"),
        (b"\x80\x02\x82\x01.", "asks for Python's extension registry"),
        (b"\x80\x02\x84\xff\xff\xff\x7f.", "asks for Python's extension registry"),
        (b"\x80\x04]\x8c\x06system\x93.", "asks for a name that is no text"),
        (b"cposix\n\x1b[2Jsystem\n.", r"asks for posix.\x1b[2Jsystem"),
        (b"c" + b"a" * 10_000 + b"\nb\n.", "asks for " + "a" * 100 + ";"),
        (b"ctorch\nFloatStorage\n)R.", "its pickle calls what is no function"),
        (b"ctorch\ndevice\n]R.", "its pickle calls what is no function"),
        (b"K\x01)R.", "its pickle calls what is no function"),
        (b"ctorch\ndevice\n)\x81.", "its pickle makes an object of what is no class"),
        (b"cdall_e.encoder\nEncoder\nK\x01\x85\x81.", "its pickle makes an object of what is no class"),
        (b"cdall_e.encoder\nEncoder\n)\x81}K\x01\x86b.", "has a tuple in the place of a dict"),
        (b"]}b.", "has a list in the place of a Instance"),
        (b"}K\x01K\x02s.", "has a dictionary whose keys are not text"),
        (b"}(K\x01u.", "has a dictionary whose keys are not text"),
        (b"K\x05Q.", "it refers to something outside that is no storage"),
        (b"K\x05.", "torch.save did not write it"),
        (b"", "it is cut off"),
        (b"\xff\xd8\xff\xe0", "it looks like an image, not like weights"),
        (b"h\x05.", "its pickle makes no sense"),
        (b"t.", "its pickle makes no sense"),
        (b"  <!DOCTYPE html><html>", "it looks like a web page, not like weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it looks like a Git LFS pointer, not like weights"),
        (b"PK\x03\x04 and nothing more", "it is damaged"),
    ],
)
def test_odd_pickles_are_refused_with_the_reason(data: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(data, tmp_path)


BOMBS = {
    "laughs": b"]" + b"".join(b"q%c(" % level + b"h%c" % level * 9 + b"l" for level in range(200)) + b".",
    "nesting": b"]" * 250_000,
    "marks": b"(" * 250_000,
    "depth": b")" + b"\x85" * 100_000 + b".",
    "deep key": b"}" + b")" + b"\x85" * 250_000 + b"Ns.",  # hashing it overflows the stack of the process
    "long text": b"X\xff\xff\xff\xffabc",
    "long bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "long number": b"\x8b\xff\xff\xff\x7f",
    "digits": b"I" + b"9" * 250_000 + b"\n.",
    "far memo": b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff",
    "no end": b"N" * (2**18 + 5),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_need_no_memory(name: str, tmp_path: Path) -> None:
    """B14."""
    tracemalloc.start()
    try:
        refused(BOMBS[name], tmp_path)
        if len(BOMBS[name]) < 2**18:
            refused(archive(BOMBS[name]), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


# Tensors that are not in the file


@pytest.mark.parametrize(
    "description",
    [
        (storage(), 0, (5,), (1,)),
        (storage(), 1, (4,), (1,)),
        (storage(), 0, (2, 2), (3, 1)),
        (storage(), 0, (2**62, 2**62), (0, 0)),
        (storage(), 0, (10**9,), (0,)),
        (storage(), -1, (2,), (1,)),
        (storage(), 3, (2,), (-1,)),
        (storage(), 0, (2,), (1, 1)),
        (storage(), 0, (0,), (1,)),
        (storage(), 0, (1,) * 5, (1,) * 5),
        (storage(), 0, (1.0,), (1,)),
        (storage(), 0, (True,), (1,)),
        (storage(), 0, [4], [1]),
        (None, 0, (1,), (1,)),
    ],
)
def test_views_beyond_the_storage_are_refused(description: tuple[Any, ...], tmp_path: Path) -> None:
    data = archive(pickled(network(_parameters={"w": parameter(*description)})), {"0": FOUR})
    assert "it describes a parameter that is not in the file" in refused(data, tmp_path)


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        (storage(num_values=2**40), "storage 0 has 16 bytes, expected 4398046511104"),
        (storage(num_values=3), "storage 0 has 16 bytes, expected 12"),
        (storage(dtype=torch.DoubleStorage), "storage 0 has 16 bytes, expected 32"),
        (storage(num_values=0), "it describes a storage in two ways, or an empty one"),
        (storage(num_values=-4), "it describes a storage in two ways, or an empty one"),
        (storage(key="../../etc/passwd"), "it is damaged"),
        (storage(key=7), "it refers to something outside that is no storage"),
        (storage(kind="file"), "it refers to something outside that is no storage"),
        (storage(dtype=torch.QInt8Storage), "asks for torch.QInt8Storage"),
        (storage(dtype=torch.device), "its pickle makes no sense"),
    ],
)
def test_storages_must_be_in_the_file(outside: Outside, message: str, tmp_path: Path) -> None:
    data = archive(pickled(network(_parameters={"w": parameter(outside, 0, (1,), (1,))})), {"0": FOUR})
    assert message in refused(data, tmp_path)


def test_one_storage_cannot_be_counted_many_times(tmp_path: Path) -> None:
    weights = {f"w{number}": parameter(storage(num_values=1000), 0, (1000,), (1,)) for number in range(50)}
    data = archive(pickled(network(_parameters=weights)), {"0": bytes(4000)})
    assert len(data) < 50 * 4000
    assert "its tensors hold more numbers than the file" in refused(data, tmp_path)


def test_a_module_that_contains_itself_is_refused(tmp_path: Path) -> None:
    made = network()
    made.__dict__["_modules"] = {"again": made, "and": made}
    assert "its modules contain one another" in refused(archive(pickled(made)), tmp_path)


@pytest.mark.parametrize("made", [{"w": 1}, OrderedDict(), [1], None, 3.5])
def test_what_is_no_network_is_refused(made: object, tmp_path: Path) -> None:
    kind = "dict" if isinstance(made, dict) else type(made).__name__.lower()
    assert f"it holds a {kind}, not a network" in refused(archive(pickled(made)), tmp_path)


def test_old_files_whose_lengths_differ_are_refused(tmp_path: Path) -> None:
    made = network(_parameters={"w": parameter(storage(), 0, (4,), (1,))})
    good = struct.pack("<q", 4) + FOUR
    assert read(old_file(made, keys=["0"], storages=good), tmp_path).parameters["w"].tolist() == [1, 2, 3, 4]
    for keys, rest, message in (
        (["0"], struct.pack("<q", 5) + FOUR, "storage 0 has another length than its pickle says"),
        (["0"], good[:-1], "it is cut off"),
        (["0"], good[:5], "it is cut off"),
        ([], good, "it is damaged"),
        (["1"], good, "it is damaged"),
        (["0", "0"], good + good, "its list of storages is damaged"),
        ([[]], good, "its list of storages is damaged"),
    ):
        assert message in refused(old_file(made, keys=keys, storages=rest), tmp_path)
    assert "torch.save did not write it" in refused(old_file(made, magic=7), tmp_path)
    assert "its numbers are big-endian" in refused(old_file(made, machine={"little_endian": False}), tmp_path)


# Archives


def test_archives_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    good = pickled(network())
    packed = archive(good + b" " * 10**6, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 10_000
    assert "its zip archive is not one of torch.save" in refused(packed, tmp_path)
    overlapping = archive(good, {str(number): bytes(100) for number in range(3)})
    claims = overlapping.replace(struct.pack("<II", 100, 100), struct.pack("<II", 10**6, 10**6))
    assert "its zip archive is not one of torch.save" in refused(claims, tmp_path)
    file = io.BytesIO(archive(good, {"0": FOUR}))
    with zipfile.ZipFile(file, "a") as made, pytest.warns(UserWarning, match="Duplicate name"):
        made.writestr("encoder/data/0", FOUR)
    assert "its zip archive is not one of torch.save" in refused(file.getvalue(), tmp_path)
    assert "no data.pkl, or one that is too long" in refused(archive(b"N." + bytes(2**18)), tmp_path)
    flipped = archive(pickled(network(_parameters={"w": parameter(storage(), 0, (4,), (1,))})), {"0": FOUR})
    assert "it is damaged" in refused(flipped.replace(FOUR, FOUR[::-1]), tmp_path)
    file = io.BytesIO(archive(good))
    with zipfile.ZipFile(file, "a") as made:
        made.writestr("encoder/byteorder", "big")
    assert "its numbers are big-endian" in refused(file.getvalue(), tmp_path)


def test_a_directory_before_the_file_is_damage(tmp_path: Path) -> None:
    data = bytearray(archive(pickled(network())))
    data[-10:-6] = b"\xff\xff\xff\x00"  # the length of the directory
    assert "it is damaged" in refused(bytes(data), tmp_path)


def test_an_archive_cannot_claim_a_huge_directory(tmp_path: Path) -> None:
    """The directory of a zip file becomes as many objects as it has entries, before anyone can look at them."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[0] * 11, 1, *[0] * 6) + b"a"
    directory = entry * 200_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 4, 0)
    tracemalloc.start()
    try:
        assert "it is damaged" in refused(b"PK\x03\x04" + directory + end, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


# Files


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*none.pkl; No such file or directory; check the path"):
        read_network(tmp_path / "none.pkl", CLASSES)
    os.mkfifo(tmp_path / "pipe.pkl")
    for path in (tmp_path, tmp_path / "pipe.pkl"):
        with pytest.raises(CheckpointError, match="cannot be read; it is not a regular file"):
            read_network(path, CLASSES)


def test_a_file_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J.pkl"
    with pytest.raises(CheckpointError, match=r"cannot read .*\\x1b\[2J.pkl; No such file"):
        read_network(path, CLASSES)
    path.write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(CheckpointError, match=r"^\\x1b\[2J.pkl asks for posix.system"):
        read_network(path, CLASSES)


def test_a_huge_file_that_is_no_network_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pkl"
    with path.open("wb") as file:
        file.truncate(2**31)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="it holds no pickle"):
            read_network(path, CLASSES)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_weights_of_several_gigabytes_are_read(tmp_path: Path) -> None:
    path, weights = tmp_path / "large.pth", {"w": torch.arange(6.0)}
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, 5 * 2**30)  # as what a training program keeps beside the weights
    assert read_state_dict(path)["w"].tolist() == weights["w"].tolist()


@pytest.mark.parametrize("weights", [{f"w{n}": torch.zeros(1) for n in range(2001)}, {"w" * 201: torch.zeros(1)}])
def test_too_many_tensors_and_too_long_names_are_said(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "many.pth")
    with pytest.raises(CheckpointError, match="more than 2000 tensors, or a name of more than 200 characters"):
        read_state_dict(tmp_path / "many.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_mutated_file_is_read_or_refused(zipped: bool, tmp_path: Path) -> None:
    """Of an archive the pickle is mutated and packed again, as the digests of the archive catch everything else."""
    made = network(_parameters={"w": parameter(storage(), 0, (2, 2), (2, 1))}, n=7, d=torch.device("cpu"), s=set())
    whole = pickled(made) if zipped else old_file(made, keys=["0"], storages=struct.pack("<q", 4) + FOUR)
    chance, outcomes = random.Random(0), {"read": 0, "refused": 0}
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(len(data))
            kind = chance.randrange(4)
            if kind == 0:
                data[place] = chance.randrange(256)
            elif kind == 1:
                data[place] ^= 1 << chance.randrange(8)
            elif kind == 2:
                del data[place : place + chance.randrange(1, 20)]
            else:
                data[place:place] = whole[(begin := chance.randrange(len(whole))) : begin + chance.randrange(1, 20)]
            data = data or bytearray(b".")
        try:
            read(archive(bytes(data), {"0": FOUR}) if zipped else bytes(data), tmp_path)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_file_cut_or_flipped_anywhere_is_read_or_refused(zipped: bool, tmp_path: Path) -> None:
    data = Path(publish(TINY.build(), tmp_path, zipped)[0]).read_bytes()
    classes = CLASSES | {"dall_e.encoder.EncoderBlock", "torch.nn.modules.container.Sequential"}
    classes |= {f"torch.nn.modules.{name}" for name in ("linear.Identity", "pooling.MaxPool2d", "activation.ReLU")}
    path, chance = tmp_path / "mutated.pkl", random.Random(1)
    for number in range(200):
        place = chance.randrange(len(data))
        changed = data[:place] if number % 2 else data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]
        path.write_bytes(changed)
        try:
            read_network(path, classes)
        except CheckpointError:
            continue
        assert number % 2 == 0, f"cut off at {place} of {len(data)} bytes and read"
