"""Pickles made to do harm, in every disguise and at every door: cases B13 to B15, B18 and K01 of the list."""

import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.cli import main
from smalti.core.errors import CheckpointError, SmaltiError
from smalti.core.files import write_folder
from smalti.training.checkpoint import read_checkpoint
from smalti.training.nonfinite import read_captured
from smalti.weights.read import read_source
from smalti.weights.saved_network import read_network, read_state_dict
from tests.faults.trial import save
from tests.small_runs import CPU
from tests.weights.published import archive

CANARY = b"touch CANARY"
GADGETS = [
    *(("os", name) for name in ("system", "popen", "execv", "spawnl", "remove", "rmdir", "putenv", "unlink")),
    *(("posix", name) for name in ("system", "popen", "execv", "fork", "kill", "unlink")),
    *(("nt", name) for name in ("system", "startfile")),
    *(("subprocess", name) for name in ("Popen", "run", "call", "check_output", "getoutput")),
    *(("builtins", name) for name in ("eval", "exec", "compile", "__import__", "getattr", "open", "breakpoint")),
    *(("__builtin__", name) for name in ("eval", "apply", "execfile")),
    *(("importlib", name) for name in ("import_module", "reload")),
    *(("torch", name) for name in ("load", "save", "compile")),
    *(("torch.hub", name) for name in ("load", "download_url_to_file")),
    *(("torch.jit", name) for name in ("load", "script")),
    *(("torch.storage", name) for name in ("_load_from_bytes",)),
    *(("torch.utils.collect_env", name) for name in ("run",)),
    *(("torch._utils", name) for name in ("_rebuild_device_tensor_from_numpy", "_import_dotted_name")),
    *(("runpy", name) for name in ("run_path", "run_module")),
    *(("pty", name) for name in ("spawn",)),
    *(("code", name) for name in ("InteractiveInterpreter",)),
    *(("shutil", name) for name in ("rmtree", "move")),
    *(("socket", name) for name in ("create_connection",)),
    *(("urllib.request", name) for name in ("urlopen",)),
    *(("webbrowser", name) for name in ("open",)),
    *(("ctypes", name) for name in ("CDLL",)),
    *(("numpy", name) for name in ("load", "fromfile")),
    *(("numpy.f2py.crackfortran", name) for name in ("getlincoef",)),
    *(("pickle", name) for name in ("loads",)),
    *(("_pickle", name) for name in ("loads",)),
    *(("functools", name) for name in ("partial", "reduce")),
    *(("operator", name) for name in ("attrgetter", "methodcaller")),
    *(("types", name) for name in ("FunctionType", "CodeType")),
    *(("bdb", name) for name in ("Bdb",)),
    *(("pip", name) for name in ("main",)),
    *(("smalti.cli", name) for name in ("main",)),
]


def calls(module: str, name: str) -> Iterator[bytes]:
    """The four ways in which a pickle can call a function."""
    argument, place = b"X" + struct.pack("<I", len(CANARY)) + CANARY, f"{module}\n{name}\n".encode()
    short = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    yield b"c" + place + b"(" + argument + b"tR."
    yield b"\x80\x04" + short + b"\x93(" + argument + b"tR."
    yield b"(" + argument + b"i" + place + b"."
    yield b"(c" + place + argument + b"o."


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(name, data)
    return file.getvalue()


def disguises(gadget: bytes) -> Iterator[tuple[str, bytes]]:
    """File names and contents."""
    old = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    yield "a.pt", gadget
    yield "a.pth", archive(gadget)
    yield "a.bin", old + gadget
    yield "a.pkl", zipped("a/data.pkl", archive(gadget))
    yield "a.ckpt", zipped("inner.pt", archive(gadget))
    yield "a.safetensors", gadget
    yield "b.safetensors", archive(gadget)
    yield "c.safetensors", struct.pack("<Q", len(gadget)) + gadget


EVENTS: list[str] = []
LISTENING: list[bool] = []


def _note(name: str, _: tuple[Any, ...]) -> None:
    if LISTENING and name.startswith(
        ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.", "socket.")
    ):
        EVENTS.append(name)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The events of this test; a hook can be added and not taken away, so it is told when to listen."""
    if not hasattr(sys, "_smalti_gadgets_heard"):
        sys.addaudithook(_note)
        monkeypatch.setattr(sys, "_smalti_gadgets_heard", True, raising=False)
    monkeypatch.chdir(tmp_path)
    EVENTS.clear()
    LISTENING.append(True)
    yield EVENTS
    LISTENING.clear()


def test_the_hook_hears_a_pickle_that_is_run(heard: list[str]) -> None:
    """Otherwise the next tests could not fail."""
    pickle.loads(next(calls("posix", "system")).replace(CANARY, b"true        "))
    assert heard == ["pickle.find_class", "os.system"]


def test_k01_b13_no_gadget_is_run_in_any_disguise(heard: list[str], tmp_path: Path) -> None:
    """Whoever reads foreign weights refuses all of them, names what was asked for, and tries nothing else instead."""
    tried = 0
    for module, name in GADGETS:
        for gadget in calls(module, name):
            for file, data in disguises(gadget):
                path = tmp_path / file
                path.write_bytes(data)
                with pytest.raises(CheckpointError) as refused:
                    read_source(str(path))
                assert file in str(refused.value)
                tried += 1
                if file != "a.pt":
                    continue
                assert "nothing was run" in str(refused.value)
                with pytest.raises(CheckpointError, match=r"this is no file of weights|cannot be read"):
                    read_network(path, frozenset({"dall_e.encoder.Encoder"}))
                if gadget.startswith((b"c", b"\x80")) and module != "__builtin__":  # which is called builtins today
                    with pytest.raises(
                        CheckpointError,
                        match=rf"asks for {module}\.{name}; weights need nothing of the kind; nothing was",
                    ):
                        read_state_dict(path)
    assert tried == len(GADGETS) * 4 * 8 >= 2000
    assert heard == []
    assert not (tmp_path / "CANARY").exists()


def _checkpoint(run: Path, gadget: bytes) -> None:
    folder = run / "checkpoints" / "step-00000001"
    write_folder(folder, {"model.safetensors": gadget, "state.safetensors": gadget, "state.json": b'{"step": 1}'})
    read_checkpoint(run)


def _captured(run: Path, gadget: bytes) -> None:
    step = {"step": 1, "loss": 0, "grad_norm": 0, "grad_norms": {}, "index": [], "keys": []}
    computed = {"computed": {"device": "cpu", "precision": "fp32", "threads": 1}}
    write_folder(
        run / "captured",
        {"model.safetensors": gadget, "state.safetensors": gadget, "step.json": json.dumps(step | computed).encode()},
    )
    read_captured(run / "captured")


def _imported(run: Path, gadget: bytes) -> None:
    from smalti.core.compute import choose_compute
    from smalti.core.config import to_json
    from smalti.runs.tokenizers import load_dalle
    from smalti.tokenizers.dalle import DallE

    config = json.dumps({"smalti": "0", "config": to_json(DallE())}).encode()
    write_folder(run / "model", {"config.json": config, "model.safetensors": gadget})
    load_dalle(str(run / "model"), choose_compute("cpu", "fp32"))


def _config(run: Path, gadget: bytes) -> None:
    (run / "config.json").write_bytes(gadget)
    assert main(["evaluate", str(run), "embedded", *CPU]) == 4
    raise CheckpointError("as it should be")


def _state(run: Path, gadget: bytes) -> None:
    save(run, 1, 1.0)
    files = {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-00000001").glob("*.safetensors")}
    write_folder(run / "checkpoints" / "step-00000001", files | {"state.json": gadget})
    read_checkpoint(run)


def _manifest(run: Path, gadget: bytes) -> None:
    save(run, 1, 1.0)
    (run / "checkpoints" / "step-00000001" / "MANIFEST.json").write_bytes(gadget)
    read_checkpoint(run)


@pytest.mark.parametrize("door", [_checkpoint, _captured, _imported, _config, _state, _manifest])
@pytest.mark.parametrize("way", range(2))
def test_k01_folders_of_our_own_are_no_door_either(
    door: Callable[[Path, bytes], None], way: int, heard: list[str], tmp_path: Path
) -> None:
    """Sizes and digests fit: whoever can write into a run folder can write those too."""
    gadget = list(calls("posix", "system"))[way]
    with pytest.raises(SmaltiError):
        door(tmp_path, gadget)
    assert heard == []
    assert not (tmp_path / "CANARY").exists()


def test_b18_a_distributed_checkpoint_is_not_opened(
    heard: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch unpickles `.metadata` of such a folder."""
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(next(calls("posix", "system")))
    torch.save({}, folder / "__0_0.distcp")
    with pytest.raises(CheckpointError) as refused:
        read_source(str(folder))
    assert str(refused.value) == (
        f"no weights in {folder}; it is a distributed checkpoint of torch, which only a pickle describes; save the"
        " model there in one file"
    )
    assert main(["evaluate", str(folder), "embedded", *CPU]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {folder} is no run folder; ")
    assert heard == []
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_b15_a_page_or_a_pointer_in_the_place_of_weights_is_called_so(
    name: str, content: bytes, what: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read; it looks like {what}, not like weights; "):
        read_source(str(tmp_path / name))


BOMBS = """
import resource, struct, sys, time, zipfile
from pathlib import Path
from smalti.core.errors import CheckpointError
from smalti.weights.read import read_source

folder = Path(sys.argv[1])
with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as made:
    with made.open("a/data.pkl", "w", force_zip64=True) as entry:
        for _ in range(512):
            entry.write(bytes(1 << 20))
with open(folder / "claim.safetensors", "wb") as file:
    file.write(struct.pack("<Q", 90 << 20) + b"{")
    file.truncate(100 << 20)
one = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
header = b"{" + b",".join(one % number for number in range(10**6)) + b"}"
(folder / "many.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
del header
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for name in ("bomb.pt", "claim.safetensors", "many.safetensors"):
    began = time.process_time()
    try:
        read_source(str(folder / name))
    except CheckpointError as error:
        print(name, "refused", time.process_time() - began < 5, error)
"""


@pytest.mark.slow
def test_b14_bombs_are_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    """A quarter of a gigabyte more than the process has after importing torch."""
    assert hasattr(resource, "RLIMIT_AS")
    done = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [name, "refused", "True"] for name in ("bomb.pt", "claim.safetensors", "many.safetensors")
    ], done.stderr
