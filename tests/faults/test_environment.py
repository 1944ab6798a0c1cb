"""Odd environments, and what no command may do: cases J09 and J10, and the first line of the security checklist.

Two take 5 to 10 seconds: verbs run in processes that start from nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smalti.core.files import write_bytes
from smalti.data.datasets.data_files import cache_folder
from tests.small_runs import CPU, PRETRAIN_FLAGS, TOKENIZER_FLAGS, pictures

ROOT = Path(__file__).parents[2]
WATCHED = Path(__file__).parent / "watched.py"
BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}

LOUD = """
import os, pickle, socket, subprocess
from smalti.recipes import nano

def loud():
    for try_it in (
        lambda: socket.getaddrinfo("localhost", 1),
        lambda: socket.socket().connect_ex(("127.0.0.1", 1)),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"]),
        lambda: pickle.loads(b"cposix\\ngetpid\\n."),
    ):
        try_it()
    return nano.train_tokenizer()
"""
"""A recipe is code of the user's own, so it may do all that."""


def commands(folder: Path) -> list[list[str]]:
    """All that is read and written by any verb, on small pictures; nothing is compiled, for which torch starts g++."""
    photos, tokenizer, run = (str(folder / name) for name in ("photos", "tokenizer", "run"))
    pretraining = [*PRETRAIN_FLAGS, "--tokenizer", tokenizer, "--plan.steps", "2", "--accept-tokenizer"]
    return [
        ["check", photos],
        ["train-tokenizer", "tiny", *TOKENIZER_FLAGS, "--data", photos, "--out", tokenizer, "--plan.steps", "2"],
        ["train-tokenizer", "--resume", tokenizer, "--plan.steps", "3"],
        ["tokenize", photos, *pretraining, "--out", f"{folder}/cache"],
        ["pretrain", "tiny", *pretraining, "--data", photos, "--out", run],
        ["evaluate", tokenizer, photos, *CPU],
        ["evaluate", run, photos, *CPU, "--draws", "2", "--poolings", "mean"],
        ["embed", run, photos, "--out", f"{folder}/features.npy", "--num-workers", "0", *CPU],
        ["search", f"{folder}/features.npy", f"{photos}/across/00.png", "--out", f"{folder}/search.html", *CPU],
        ["show", run, f"{photos}/across/00.png", "--out", f"{folder}/show.html", *CPU],
        ["report", tokenizer, run],
        ["masks", "--out", f"{folder}/masks.html"],
        ["prepare", photos, "--out", f"{folder}/shards"],
        ["explain", "nano"],
    ]


def watched(folder: Path, given: list[list[str]]) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events of commands."""
    done = subprocess.run(
        [sys.executable, str(WATCHED), str(folder / "events")],
        input="".join(json.dumps(command) + "\n" for command in given),
        env=os.environ | BARE | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    return done.returncode, events


@pytest.mark.processes
def test_j10_no_command_talks_to_anybody_starts_a_program_or_unpickles(tmp_path: Path) -> None:
    """Seen by Python's own audit events, while everything is made, loaded and shown; a recipe that does is seen."""
    pictures(tmp_path / "photos")
    (tmp_path / "loud.py").write_text(LOUD)
    code, events = watched(tmp_path, [*commands(tmp_path), ["explain", f"{tmp_path}/loud.py:loud"]])
    assert code == 0
    ours = [event for event in events if "loud.py" not in event["stack"]]
    assert ours == []
    assert {event["event"] for event in events} >= {
        "socket.getaddrinfo",
        "socket.connect",
        "os.system",
        "subprocess.Popen",
        "pickle.find_class",
    }


@pytest.mark.processes
def test_j09_no_home_no_terminal_no_input_no_threads_and_no_language(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "fotografías\udcff")
    flags: list[str | bytes] = ["--data", os.fsencode(photos), "--out", str(tmp_path / "run"), "--plan.steps", "2"]
    odd = {"OMP_NUM_THREADS": "0", "LANG": "C", "LC_ALL": "C", "TERM": "dumb", "COLUMNS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "smalti", "train-tokenizer", "tiny", *TOKENIZER_FLAGS, *flags, "--json"],
        env=BARE | odd,
        preexec_fn=lambda: os.close(0),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2
    assert b"\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_j09_without_standard_output_and_error_a_run_is_made_all_the_same(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos")
    flags = ["--data", str(photos), "--out", str(tmp_path / "run"), "--plan.steps", "2"]

    def close_all() -> None:
        for number in (0, 1, 2):
            os.close(number)

    command = [sys.executable, "-m", "smalti", "train-tokenizer", "tiny", *TOKENIZER_FLAGS, *flags, "--json"]
    done = subprocess.run(command, env=BARE | {"OMP_NUM_THREADS": "1"}, preexec_fn=close_all, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "run" / "result.json").exists()
    for path in (tmp_path / "run").rglob("*.json*"):
        assert path.read_text().startswith("{"), "nothing is printed into files that took the numbers of the streams"


def test_j09_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "SMALTI_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda place: place)  # nobody of this number is known to the system
    with pytest.raises(Exception, match=r"/dev/null/smalti/shards/an\.index; File exists"):
        write_bytes(cache_folder() / "shards" / "an.index", b"")
