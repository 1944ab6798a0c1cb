"""What a run that goes on may change, what stops it, and when there is nothing left to do."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from smalti.cli import main
from smalti.core.compute import Compute, Device, Precision, RunEnvironment
from smalti.core.files import write_folder
from smalti.core.folder_lock import writer_lock
from smalti.core.stored import read_folder
from smalti.runs import session
from tests.small_runs import (
    interrupted_before,
    metrics,
    newest_checkpoint,
    pictures,
    pretrain,
    result,
    train_tokenizer,
    weights,
)

SAVE = ("--plan.save-every", "2")
CONSTANT = ("--optimiser.lr", "1e-3", "--optimiser.end-lr", "1e-3", "--optimiser.warmup-ratio", "0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("resuming") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """A run of six steps."""
    out = photos.parent / "whole"
    assert train_tokenizer(photos, out, 6, *SAVE) == 0
    return out


@pytest.fixture
def left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, interrupted before its fifth step."""
    with interrupted_before(4, monkeypatch):
        assert train_tokenizer(photos, tmp_path / "left", 6, *SAVE) == 130
    return tmp_path / "left"


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resume(run: Path, *flags: str) -> int:
    return main(["train-tokenizer", "--resume", str(run), *flags])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def rewrite(run: Path, **about: object) -> None:
    """Change what the newest checkpoint says about itself, digest and all; None: it does not say so any more."""
    folder = newest_checkpoint(run)
    files = read_folder(folder)
    said = json.loads(files["state.json"]) | about
    said = {name: value for name, value in said.items() if value is not None}
    write_folder(folder, files | {"state.json": json.dumps(said).encode()})


def test_a12_a_checkpoint_says_on_how_many_threads_it_was_computed(whole: Path) -> None:
    said = json.loads((newest_checkpoint(whole) / "state.json").read_text())
    assert said["conditions"] == {"threads": 1, "world_size": 1}


def test_a12_another_number_of_threads_stops_a_resume(
    left: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(left)
    with threads(2):
        assert resume(left) == 2
        assert last_line(capsys) == (
            f"error: the run in {left} cannot go on bit for bit; 1 thread then, 2 now (OMP_NUM_THREADS);"
            " go on as it began, or use --allow-inexact"
        )
        assert weights(left) == before
    assert resume(left) == 0
    assert weights(left) == weights(whole)


def test_a12_unless_that_is_allowed(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with threads(2):
        assert resume(left, "--allow-inexact") == 0
    said = capsys.readouterr().err.splitlines()
    assert "not bit for bit from here on: 1 thread then, 2 now (OMP_NUM_THREADS)" in said
    assert json.loads((newest_checkpoint(left) / "state.json").read_text())["conditions"]["threads"] == 2


def test_a13_another_number_of_processes_stops_a_resume(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(left, conditions={"threads": 1, "world_size": 4})
    assert resume(left) == 2
    assert "cannot go on bit for bit; 4 processes then, 1 now; go on as it began" in last_line(capsys)


def test_threads_matter_where_sums_are_computed_on_them() -> None:
    then, now = RunEnvironment(1, 1), RunEnvironment(8, 1)
    assert then.differences(now, on_cpu=True) == ["1 thread then, 8 now (OMP_NUM_THREADS)"]
    assert then.differences(now, on_cpu=False) == []


def test_a12_an_older_checkpoint_that_does_not_say_so_goes_on_with_a_note(
    left: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(left, conditions=None)
    assert resume(left) == 0
    note = "note: the checkpoint does not say on how many threads and processes it was computed"
    assert note in capsys.readouterr().err.splitlines()
    assert weights(left) == weights(whole)


def test_a_record_of_threads_that_is_dropped_is_caught(
    left: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken on purpose."""
    monkeypatch.setattr(RunEnvironment, "differences", lambda *_, **__: [])
    with pytest.raises(AssertionError):
        test_a12_another_number_of_threads_stops_a_resume(left, whole, capsys)


@pytest.mark.parametrize("conditions", [{"threads": "one", "world_size": 1}, [], {"threads": 1}])
def test_conditions_that_cannot_be_understood_are_damage(
    left: Path, conditions: object, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(left, conditions=conditions)
    assert resume(left) == 0
    assert "step-00000004 (state.json cannot be understood); step-00000002 is used" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train-tokenizer", "pretrain"])
def test_a06_a_run_that_has_saved_nothing_yet_begins_anew(
    verb: str,
    photos: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the mean of the images as it is measured at the start of a run, and nothing of the first try left."""

    def train(out: Path) -> int:
        if verb == "pretrain":
            return pretrain(photos, whole, out, 3, "--normalisation", "auto")
        return train_tokenizer(photos, out, 3)

    assert train(tmp_path / "whole") == 0
    with interrupted_before(2, monkeypatch):
        assert train(tmp_path / "run") == 130
    capsys.readouterr()
    assert main([verb, "--resume", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "no checkpoint yet: starting from step 0" in said
    assert not any(line.startswith("going on") for line in said)
    for read in (weights, metrics, result):
        assert read(tmp_path / "run") == read(tmp_path / "whole")


def test_b05_a_run_whose_checkpoints_are_all_damaged_never_begins_anew(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (left / "checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"")
    lines = metrics(left)
    assert resume(left) == 4
    told = last_line(capsys)
    assert told.startswith(f"error: no usable checkpoint in {left}; damaged: step-00000004 (model.safetensors has 0 ")
    assert "step-00000002 (model.safetensors has 0 bytes" in told
    assert metrics(left) == lines


def test_b01_from_the_checkpoint_before_a_damaged_one_a_run_ends_as_if_nothing_had_happened(
    left: Path, whole: Path
) -> None:
    path = newest_checkpoint(left) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert resume(left) == 0
    assert (weights(left), metrics(left), result(left)) == (weights(whole), metrics(whole), result(whole))


def test_a18_a_finished_run_that_goes_on_stays_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times of files too."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert resume(whole, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == f"{whole}: already complete at step 6\n"
    assert json.loads(printed.out) == result(whole)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*") if path.is_file()} == before


def test_a18_what_a_run_left_that_was_killed_after_its_result_is_removed(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / ".lock").write_text("1 on somewhere\n")
    (run / f".result.json.{'0' * 32}").write_text("{")
    (run / "checkpoints" / f".step-00000004.{'0' * 32}").mkdir()
    assert resume(run) == 0
    assert [path.name for path in run.rglob(".*")] == []
    assert result(run) == result(whole)


def test_a18_a_finished_run_in_a_folder_that_another_process_writes_is_read(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    with writer_lock(run):
        assert resume(run) == 0


def test_a18_a_run_whose_result_was_lost_is_measured_again(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "result.json").unlink()
    assert resume(run) == 0
    assert (weights(run), metrics(run), result(run)) == (weights(whole), metrics(whole), result(whole))


def test_a18_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (newest_checkpoint(run) / "model.safetensors").write_bytes(b"")
    assert resume(run) == 0
    assert (weights(run), metrics(run), result(run)) == (weights(whole), metrics(whole), result(whole))


def test_a19_an_extended_run_is_the_longer_run(
    photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no schedule depends on the number of steps."""
    assert pretrain(photos, whole, tmp_path / "long", 8, *CONSTANT) == 0
    assert pretrain(photos, whole, tmp_path / "run", 4, *CONSTANT) == 0
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--plan.steps", "8"]) == 0
    assert "settings that have changed: plan.steps 4 -> 8" in capsys.readouterr().err.splitlines()
    for read in (weights, metrics, result):
        assert read(tmp_path / "run") == read(tmp_path / "long")


def test_an_extended_run_says_where_its_learning_rate_jumps_and_how_it_goes_on_at_the_end_rate(
    photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = ("--optimiser.lr", "1e-3", "--optimiser.end-lr", "1e-5", "--optimiser.warmup-ratio", "0")
    assert pretrain(photos, whole, tmp_path / "run", 4, *falling) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--plan.steps", "8"]) == 0
    said = capsys.readouterr().err.splitlines()
    jump = said[said.index("settings that have changed: plan.steps 4 -> 8") + 1]
    assert jump == (
        "what that does: learning rate 1e-05 at step 4, 0.00032 at step 5; --optimiser.schedule constant"
        " --optimiser.lr 1e-05 --allow-inexact goes on at the rate it had;"
        f" a new run with --init-from {tmp_path / 'run'} has a new warm-up"
    )
    assert metrics(tmp_path / "run")[4]["lr"] == pytest.approx(0.00032, abs=5e-6)
    level = ["--optimiser.schedule", "constant", "--optimiser.lr", "1e-05", "--allow-inexact", "--plan.steps", "8"]
    assert main(["pretrain", "--resume", str(tmp_path / "other"), *level]) == 0
    assert "what that does" not in capsys.readouterr().err
    assert [line["lr"] for line in metrics(tmp_path / "other")[4:]] == [pytest.approx(1e-5)] * 4


def test_a_tokenizer_that_has_moved_is_known_by_its_digest(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(photos, whole, tmp_path / "through", 4, *SAVE, "--accept-tokenizer") == 0
    shutil.copytree(whole, tmp_path / "tokenizer")
    with interrupted_before(2, monkeypatch):
        assert pretrain(photos, tmp_path / "tokenizer", tmp_path / "run", 4, *SAVE, "--accept-tokenizer") == 130
    (tmp_path / "tokenizer").rename(tmp_path / "moved")
    again = ["pretrain", "--resume", str(tmp_path / "run")]
    assert main(again) == 4
    gone = f"error: the tokenizer of the run is no longer in {tmp_path / 'tokenizer'}"
    assert last_line(capsys) == f"{gone}; say where it is now with --tokenizer RUN"
    assert train_tokenizer(photos, tmp_path / "another", 2) == 0
    assert main([*again, "--tokenizer", str(tmp_path / "another")]) == 2
    error = (
        f"error: the run in {tmp_path / 'run'} cannot go on bit for bit; the tokenizer has other weights than it had;"
    )
    assert last_line(capsys) == f"{error} go on as it began, or use --allow-inexact"
    assert main([*again, "--tokenizer", str(tmp_path / "moved")]) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "through")


def test_where_no_digest_was_recorded_the_tokenizer_has_to_be_where_it_was(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As runs of older versions are."""
    with interrupted_before(2, monkeypatch):
        assert pretrain(photos, whole, tmp_path / "run", 4, *SAVE, "--accept-tokenizer") == 130
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    del data["tokenizer_sha256"]
    (tmp_path / "run" / "data.json").write_text(json.dumps(data))
    shutil.copytree(whole, tmp_path / "copy")
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--tokenizer", str(tmp_path / "copy")]) == 2
    assert f"cannot go on bit for bit; tokenizer {whole} -> {tmp_path / 'copy'}; " in last_line(capsys)
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 0


def test_a_tokenizer_says_what_a_longer_run_does_to_all_its_schedules(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert resume(tmp_path / "run", "--plan.steps", "20", "--plan.batch-size", "8") == 2
    effect = capsys.readouterr().err.splitlines()[-2]
    assert effect.startswith("what that does: learning rate ")
    assert "; temperature 0.062 at step 6, " in effect
    assert effect.endswith("; images go on from 48, as if all steps had been of the new batch size")


def test_a_run_that_goes_on_with_another_optimiser_says_what_that_does(
    photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(photos, whole, tmp_path / "run", 2, "--accept-tokenizer") == 0
    again = ["pretrain", "--resume", str(tmp_path / "run"), "--plan.steps", "4", "--optimiser.matrices", "muon"]
    capsys.readouterr()
    assert main(again) == 2
    assert "; averages of the gradients of matrices start anew" in capsys.readouterr().err.splitlines()[-2]
    assert main([*again, "--allow-inexact"]) == 0


def test_a_run_cannot_become_shorter_than_it_is(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(left, "--plan.steps", "3") == 2
    assert last_line(capsys) == (f"error: steps is 3, and the run in {left} has done 4; use --plan.steps 4 or more")


def test_b19_other_settings_are_shown_and_stop_a_resume(
    left: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (left / "config.json").read_bytes()
    assert resume(left, "--optimiser.lr", "0.5", "--seed", "3", "--plan.log-every", "2") == 2
    *_, shown, effect, error = capsys.readouterr().err.splitlines()
    assert re.match(r"what that does: learning rate [^ ]+ at step 4, 0.\d+ at step 5; ", effect)
    assert shown.startswith("settings that have changed: optimiser.lr ")
    assert shown.endswith(" -> 0.5, plan.log_every 1 -> 2, seed 0 -> 3")
    assert error.startswith(f"error: the run in {left} cannot go on bit for bit; optimiser.lr ")
    assert error.endswith(" -> 0.5, seed 0 -> 3; go on as it began, or use --allow-inexact")
    assert (left / "config.json").read_bytes() == config
    assert resume(left) == 0
    assert weights(left) == weights(whole)


def test_b19_a_part_of_another_kind_is_a_change_too(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(left, "--tokenizer", "vq") == 2
    assert "cannot go on bit for bit; tokenizer dvae -> vq, " in last_line(capsys)


def test_b19_unless_that_is_allowed(left: Path, whole: Path) -> None:
    assert resume(left, "--optimiser.lr", "0.01", "--allow-inexact") == 0
    assert metrics(left)[:4] == metrics(whole)[:4]
    assert metrics(left)[5] != metrics(whole)[5]
    assert json.loads((left / "config.json").read_text())["config"]["optimiser"]["lr"] == 0.01


def test_b19_how_often_something_is_said_and_saved_may_change(left: Path, whole: Path) -> None:
    assert resume(left, "--plan.log-every", "2", "--plan.save-every", "5") == 0
    assert weights(left) == weights(whole)
    assert metrics(left) == [*metrics(whole)[:4], metrics(whole)[5]]


def test_where_and_in_which_format_it_computes_is_decided_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` is found by timing, and may be found otherwise on another day."""
    given: list[tuple[str, str]] = []

    def choose(device: Device, precision: Precision) -> Compute:
        given.append((device, precision))
        return Compute(torch.device("cpu"), torch.bfloat16)

    monkeypatch.setattr(session, "choose_compute", choose)
    assert train_tokenizer(photos, tmp_path / "run", 2, "--device", "auto", "--precision", "auto") == 0
    assert resume(tmp_path / "run", "--plan.steps", "3") == 0
    assert given == [("auto", "auto"), ("cpu", "bf16")]
    assert resume(tmp_path / "run", "--plan.steps", "4", "--precision", "fp32") == 2
    assert "cannot go on bit for bit; precision bf16 -> fp32; go on" in last_line(capsys)


def test_b17_a_run_goes_on_elsewhere_and_nothing_is_written_where_it_was(
    left: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in [left, *left.rglob("*")]}
    assert resume(left, "--out", str(tmp_path / "elsewhere")) == 0
    assert {path: path.stat().st_mtime_ns for path in [left, *left.rglob("*")]} == before
    assert weights(tmp_path / "elsewhere") == weights(whole)
    assert metrics(tmp_path / "elsewhere") == metrics(whole)
    assert resume(left, "--out", str(tmp_path / "elsewhere")) == 2
    assert last_line(capsys) == (
        f"error: {tmp_path}/elsewhere is there already; a run never overwrites; choose another --out"
    )


def test_the_flag_is_for_runs_that_go_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_tokenizer(photos, tmp_path / "run", 2, "--allow-inexact") == 2
    assert last_line(capsys).startswith("error: unknown option '--allow-inexact'")
