"""What must not get out, or in through a name: cases K16 to K18 of the list."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.cli import main
from smalti.core.addresses import is_address, without_secrets
from smalti.core.compute import choose_compute
from smalti.core.contracts import Batch
from smalti.core.log import Log, printable
from smalti.recipes import nano
from smalti.runs.folder import create, writing
from smalti.runs.hooks import TrainingHooks
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.training.checkpoint import BackgroundWriter
from smalti.training.nonfinite import NotFiniteError, Numbers
from tests.small_runs import CPU, flat_pictures, pretrain, train_tokenizer

EVIL = "\x1b[2J\x1b]0;owned\x07\r\nfake line\x9b31m\u202e.png"
"""Clears the screen, names the window, begins a line of its own, colours it and turns the text around."""

SECRET = "hunter2"


def visible(text: str) -> str:
    """The text, which must not steer a terminal."""
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)
    return text


# K16


def test_k16_a_run_folder_that_others_can_change_is_worth_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(str(tmp_path / "mine")):
        assert capsys.readouterr().err == ""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with writing(str(tmp_path / "open")):
        said = f"warning: everybody can write into {tmp_path}/open, so the run can be changed by others\n"
        assert capsys.readouterr().err == said
    (tmp_path / "open").chmod(0o1777)
    with writing(str(tmp_path / "open")):
        assert capsys.readouterr().err == "", (
            "of a sticky folder, such as /tmp, nobody can change what others have in it"
        )
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with writing(str(tmp_path / "mine")):
        said = f"warning: {tmp_path}/mine belongs to another user, so the run can be changed by others\n"
        assert capsys.readouterr().err == said


def test_k16_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(Exception, match=r"cannot lock .*Too many levels of symbolic links"),
        writing(str(tmp_path / "run")),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "content"


# K17


def test_k17_no_name_can_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = flat_pictures(tmp_path / "photos", 12)
    (photos / EVIL).write_bytes(b"no image")
    (photos / "00.png").rename(photos / f"a{EVIL}")
    assert main(["check", str(photos)]) == 0
    assert train_tokenizer(photos, tmp_path / f"run{EVIL}", 1, "--data.max-bad-fraction", "0.5") == 0
    assert main(["prepare", str(photos), "--out", str(tmp_path / f"shards{EVIL}"), "--max-bad-fraction", "0.5"]) == 0
    shown = ["show", str(tmp_path / f"run{EVIL}"), str(photos / f"a{EVIL}"), "--out", str(tmp_path / "s.html"), *CPU]
    assert main(shown) == 0
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        visible(text)
    assert r"\x1b[2J\x1b]0;owned\x07\r\nfake line\x9b31m\u202e.png" in printed.err
    assert not any(line.startswith("fake line") for line in (printed.out + printed.err).splitlines())


@pytest.mark.parametrize(
    "command",
    [
        ["check", EVIL],
        ["evaluate", EVIL, "embedded"],
        ["show", EVIL, "a.png"],
        ["report", EVIL],
        ["replay", EVIL],
        ["explain", EVIL],
        ["explain", f"{EVIL}:x"],
        ["masks", f"--{EVIL}", "1"],
        ["masks", "--draws", EVIL],
        ["train-tokenizer", "nano", "--out", f"/dev/null/{EVIL}"],
        ["train-tokenizer", "--resume", EVIL],
        [EVIL],
    ],
    ids=lambda command: command[0][:8].encode("ascii", "backslashreplace").decode(),
)
def test_k17_no_error_can_steer_the_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) in (2, 3, 4, 6)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(visible(printed.err).splitlines()) == 1


# K18


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_k18_nothing_of_the_environment_gets_into_a_run_or_a_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "SMALTI_ANYTHING", "USER", "HOSTNAME"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    photos = flat_pictures(tmp_path / "photos", 12)
    assert train_tokenizer(photos, tmp_path / "runs" / "tokenizer", 2) == 0
    flags = ["--accept-tokenizer", "--optimiser.lr", "1e38"]
    code = pretrain(photos, tmp_path / "runs" / "tokenizer", tmp_path / "runs" / "run", 30, *flags)
    assert code == 5
    assert list((tmp_path / "runs" / "run" / "captures").iterdir())
    found = everything_in(tmp_path / "runs")
    assert b'"captures"' not in found
    assert len(found) > 10_000
    assert SECRET.encode() not in found


ADDRESS = f"https://me:{SECRET}@host/set/s-{{000..009}}.tar?X-Amz-Signature={SECRET}"


def with_address(address: str = ADDRESS) -> TrainTokenizer:
    start = nano.train_tokenizer()
    return dataclasses.replace(start, data=dataclasses.replace(start.data, path=address), device="cpu")


@pytest.mark.parametrize("scheme", ["https", "HTTP", "Hf", "s3"])
def test_k18_a_run_folder_keeps_the_address_without_password_and_signature(tmp_path: Path, scheme: str) -> None:
    create(str(tmp_path / "run"), with_address(ADDRESS.replace("https", scheme)))
    assert SECRET.encode() not in everything_in(tmp_path)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["data"]["path"]
    assert kept == f"{scheme}://host/set/s-{{000..009}}.tar"


ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCHEME = st.sampled_from(["http", "HTTP", "hTtPs", "s3", "gs", "az", "abfs", "hf"])
SLASHES = st.sampled_from(["//", "/", "///"])


@given(SCHEME, SLASHES, ODD, ODD, ODD, ODD, st.sampled_from(["", "\n", "'", '"', " ", "(", "<"]))
def test_k18_no_odd_character_of_a_secret_lets_it_through(
    scheme: str, slashes: str, user: str, before: str, after: str, signed: str, quote: str
) -> None:
    """Of passwords, queries and fragments; a password has any character, and a user any that does not end him."""
    user = re.sub(r"[/?#:\\@]", "", user)
    password, query = f"p{before}{SECRET}{after}", f"{signed}{SECRET}{signed}"
    for address in (
        f"{scheme}:{slashes}{user}:{password}@host/set/0.tar",
        f"{scheme}:{slashes}{user}:{password}@host:80/set/0.tar?{query}",
        f"{scheme}:{slashes}host/set/0.tar?sig={query}",
        f"{scheme}:{slashes}[::1]:8080/set/0.tar#{query}",
    ):
        assert is_address(address)
        for text in (address, f"404, url={quote}{address}{quote}: is not there", f"from http://h/x to {address}"):
            assert SECRET not in without_secrets(text)
            assert SECRET not in printable(text)
        if "@" not in address:
            assert without_secrets(address) == re.split("[?#]", address)[0]


@given(ODD, ODD, st.sampled_from(["", ":80"]))
def test_k18_an_address_without_secrets_is_shown_whole(folder: str, name: str, port: str) -> None:
    path = re.sub("[?#]", "", f"{folder}@/{name}.tar").replace(":/", "")
    assert without_secrets(f"hf://host{port}/{path}") == f"hf://host{port}/{path}"


@pytest.mark.parametrize(
    "command", [["info"], ["show", "a.png"], ["evaluate", "embedded"], ["report"], ["search", "x"]]
)
def test_k18_no_verb_shows_the_secret_of_an_address_that_it_cannot_read(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *more = command
    assert main([verb, f"HTTPS://me:{SECRET}@host/model?sig='{SECRET}\"", *more]) in (2, 3, 4, 6)
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


def test_k18_a_bundle_has_no_address_with_a_secret_either(tmp_path: Path) -> None:
    config = dataclasses.replace(with_address(), out=str(tmp_path / "run"))
    folder, compute = create(config.out, config), choose_compute("cpu", "fp32")
    hooks = TrainingHooks(folder, compute, config.plan, BackgroundWriter(), "")

    class Stopped:
        """What a capture asks of a trainer."""

        def checkpoint(self) -> Any:
            from smalti.training.checkpoint import Checkpoint

            return Checkpoint(3, {"a": torch.zeros(1)}, {})

    two = torch.tensor([1, 2])
    shown = Batch(image=torch.zeros(2, 1, 1, 1), index=two, key=two)
    path = hooks.keep_failed(Stopped(), shown, NotFiniteError(3, Numbers(float("nan"), 1.0, {})))  # type: ignore[arg-type]
    assert (path / "config.json").exists()
    assert SECRET.encode() not in everything_in(tmp_path)


def test_k18_what_is_no_address_is_kept_as_it_is(tmp_path: Path) -> None:
    """A question mark or an at sign in the name of a folder is no secret."""
    start = nano.train_tokenizer()
    for number, path in enumerate(("/data/a@b?c#d", "C://odd@name", "what? 100 % @home", "relative//x@y")):
        config = dataclasses.replace(start, data=dataclasses.replace(start.data, path=path))
        folder = create(str(tmp_path / str(number)), config)
        assert json.loads((folder.path / "config.json").read_text())["config"]["data"]["path"] == path


def test_k18_the_console_shows_no_secret_of_an_address(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"http://me:{SECRET}@127.0.0.1:1/0.tar?sig={SECRET}"
    for command in (["check", address], ["prepare", address, "--out", str(tmp_path / "shards")]):
        assert main(command) == 3
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "http://127.0.0.1:1/0.tar" in printed.err


def test_k18_a_line_of_the_log_is_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    Log().say(f"[red]{EVIL}[/red]")
    assert visible(capsys.readouterr().err).startswith("[red]")
