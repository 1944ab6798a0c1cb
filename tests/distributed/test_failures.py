"""What happens to a run of several processes when one of them is lost, hangs, fails or is another than the rest.

A test takes 3 to 17 seconds: that a process is lost is known after seconds of silence.
"""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from smalti.cli import main
from tests.distributed.started import started
from tests.small_runs import PRETRAIN_FLAGS, metrics, newest_checkpoint, pictures, weights

pytestmark = pytest.mark.processes

STEPS = 8
SAVE = ["--plan.save-every", "2"]


def command(photos: Path | str, out: Path, *flags: str) -> list[str]:
    """A run that predicts pixels, which needs no tokenizer."""
    given = ["--target", "pixels", "--data", str(photos), "--out", str(out), "--plan.steps", str(STEPS), *flags]
    return ["pretrain", "tiny", *PRETRAIN_FLAGS, *given]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("ranks") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """What two ranks end in that nothing happens to."""
    run = photos.parent / "whole"
    with started(photos.parent, [command(photos, run, *SAVE)] * 2) as ranks:
        assert ranks.all_codes() == [0, 0], ranks.text(0)
    return run


def assert_goes_on_exactly(run: Path, whole: Path, *flags: str) -> None:
    """Two ranks that go on end in the same bytes."""
    with started(run.parent, [["pretrain", "--resume", str(run), *flags]] * 2) as ranks:
        assert ranks.all_codes() == [0, 0], ranks.text(0)
    assert weights(run) == weights(whole)
    assert metrics(run) == metrics(whole)


def step_of(run: Path) -> int:
    return int(newest_checkpoint(run).name.removeprefix("step-"))


def leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step-")]


def test_e01_the_others_end_and_name_a_rank_that_is_killed_in_a_step(photos: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(tmp_path, [command(photos, run, *SAVE)] * 2, faults={1: "kill:5"}) as ranks:
        assert ranks.codes(1) == [-signal.SIGKILL]
        assert ranks.codes(0, within=60) == [8], ranks.text(0)
        assert ranks.error(0).startswith(f"error: rank 0 of 2: rank 1 of 2 is gone (process {ranks.pid(1)} on ")
        assert ranks.error(0).endswith("see its own message; the run goes on from its last checkpoint with --resume")
    assert step_of(run) == 4
    assert_goes_on_exactly(run, whole)


def test_e01_the_others_end_and_name_rank_0_with_which_their_meeting_place_is_gone(
    photos: Path, tmp_path: Path
) -> None:
    with started(tmp_path, [command(photos, tmp_path / "run")] * 2, faults={0: "kill:1"}) as ranks:
        assert ranks.codes(0) == [-signal.SIGKILL]
        assert ranks.codes(1, within=60) == [8], ranks.text(1)
        assert "rank 0 of 2 or the torchrun that started it is gone" in ranks.error(1)


def test_e03_a_rank_that_is_stopped_is_named_with_the_place_where_it_is_waited_for(
    photos: Path, tmp_path: Path
) -> None:
    run = command(photos, tmp_path / "run", "--ranks.timeout", "4")
    with started(tmp_path, [run] * 2, faults={1: "stop:2"}) as ranks:
        ranks.wait_until(lambda: len(metrics_if_any(tmp_path / "run")) == 2)
        assert ranks.codes(0, within=4 + 10) == [8], ranks.text(0)
        assert "rank 1 of 2 gives no sign of life: it is stopped, or its machine cannot be reached" in ranks.error(0)
        assert "Timed out waiting 4000ms" in ranks.error(0)
        assert "trainer.train_step(batch, compute" in ranks.text(0), "where it was waited for"
        os.kill(ranks.pid(1), signal.SIGCONT)
        assert ranks.codes(1, within=60) == [8], ranks.text(1)


@pytest.mark.slow
def test_e03_a_rank_that_hangs_but_lives_ends_the_others_too(photos: Path, tmp_path: Path) -> None:
    run = command(photos, tmp_path / "run", "--ranks.timeout", "2")
    with started(tmp_path, [run] * 2, faults={1: "hang:2"}) as ranks:
        ranks.wait_until(lambda: len(metrics_if_any(tmp_path / "run")) == 2)
        assert ranks.codes(0, 1, within=2 + 20) == [8, 8], ranks.text(0)
        assert "a process is alive and does not come to where the others wait" in ranks.error(0)
        assert "rank 0 of 2 has failed: a process is alive" in ranks.text(1)
        assert "in happen" in ranks.text(1), "where it hung"


def metrics_if_any(run: Path) -> list[object]:
    return list(metrics(run)) if (run / "metrics.jsonl").exists() else []


def test_e04_rank_0_killed_while_it_saves_leaves_no_half_checkpoint(photos: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(tmp_path, [command(photos, run, *SAVE)] * 2, faults={0: "kill:save:4"}) as ranks:
        assert ranks.codes(0) == [-signal.SIGKILL]
        assert ranks.codes(1, within=60) == [8], ranks.text(1)
    assert step_of(run) == 2
    assert_goes_on_exactly(run, whole)
    assert leftovers(run) == []


def test_e05_rank_0_finishes_its_checkpoint_when_another_is_killed(photos: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    faults = {0: "slow:save:4", 1: "kill:4"}
    with started(tmp_path, [command(photos, run, *SAVE)] * 2, faults=faults) as ranks:
        assert ranks.codes(0, 1) == [8, -signal.SIGKILL], ranks.text(0)
    assert step_of(run) == 4
    assert leftovers(run) == []
    assert_goes_on_exactly(run, whole)


def test_e06_a_number_that_is_none_on_one_rank_stops_all_before_the_optimiser(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with started(tmp_path, [command(photos, run)] * 2, faults={1: "nan:3"}) as ranks:
        assert ranks.all_codes() == [5, 5], ranks.text(0)
        for number in (0, 1):
            assert f"error: rank {number} of 2: the gradient is not finite at step 3; loss nan" in ranks.error(number)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    [captured] = (run / "captures").iterdir()
    kept = json.loads((captured / "step.json").read_text())
    assert len(kept["index"]) == len(set(kept["keys"])) == 16, "the images of both ranks"
    assert kept["computed"]["processes"] == 2
    assert main(["replay", str(captured)]) == 9  # the loss is the batch's, which a fault has spoilt on its way
    assert "; 2 processes then, which add up in another order, 1 now" in capsys.readouterr().err


def test_e06_a_step_that_is_left_out_is_left_out_by_all(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--plan.skip-nonfinite", "1"]
    with started(tmp_path, [command(photos, run, *flags)] * 2, faults={1: "nan:6"}) as ranks:
        assert ranks.all_codes() == [0, 0], ranks.text(0)
        assert "skipped: the gradient is not finite at step 6; loss nan; 1 of at most 1" in ranks.text(0)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize("on_bad_image", ["replace", "error"])
def test_e07_an_image_that_one_rank_cannot_read_is_news_to_all(on_bad_image: str, tmp_path: Path) -> None:
    data, run = pictures(tmp_path / "photos"), tmp_path / "run"
    for broken in ("across/03.png", "down/04.png", "down/05.png"):
        (data / broken).write_bytes((data / broken).read_bytes()[:200])
    flags = ["--data.memory", "stream", "--data.num-workers", "0", "--data.max-bad-fraction", "0.5"]
    commands = [command(data, run, *flags, "--data.on-bad-image", on_bad_image)] * 2
    with started(tmp_path, commands) as ranks:
        codes, said = ranks.all_codes(), [ranks.text(number) for number in (0, 1)]
    if on_bad_image == "error":
        assert codes == [3, 3], said
        first, second = (text.splitlines()[-1] for text in said)
        assert first.startswith("error: rank 0 of 2: cannot read ")
        assert first.replace("rank 0 of", "rank 1 of") == second
        return
    assert codes == [0, 0], said
    assert len(metrics(run)) == STEPS
    found = [json.loads(line)["path"] for line in (run / "bad_files.jsonl").read_text().splitlines()]
    assert len(found) == len(set(found)) > 0


def test_e09_ranks_with_other_settings_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    commands = [command(photos, tmp_path / "run", "--optimiser.lr", rate) for rate in ("0.001", "0.002")]
    with started(tmp_path, commands) as ranks:
        assert ranks.all_codes() == [8, 8]
        for number in (0, 1):
            assert ranks.error(number) == (
                f"error: rank {number} of 2: rank 1 of 2 has another configuration: optimiser.lr is 0.002, and 0.001 on"
                " rank 0; start all ranks with the same command, on the same files"
            )
    assert not (tmp_path / "run" / "config.json").exists()


def test_e09_ranks_with_other_images_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "one" / "photos")
    pictures(tmp_path / "two" / "photos", per_class=17)
    commands = [command("photos", tmp_path / "run")] * 2
    with started(tmp_path, commands, folders=[tmp_path / "one", tmp_path / "two"]) as ranks:
        assert ranks.all_codes() == [8, 8]
        assert "rank 1 of 2 has another data set: images is 27, and 26 on rank 0, fingerprint is " in ranks.error(0)


def test_e10_a_rank_that_never_starts_is_named(photos: Path, tmp_path: Path) -> None:
    run = command(photos, tmp_path / "run", "--ranks.join-timeout", "1")
    with started(tmp_path, [run, None, None]) as ranks:
        assert ranks.codes(0) == [8]
        assert ranks.error(0) == (
            f"error: rank 0 of 3: rank 1, rank 2 of 3 did not come to {ranks.where} within 1 s; see why it did not"
            " start; raise --ranks.join-timeout where machines start slowly"
        )


def test_e10_a_wrong_address_is_named(photos: Path, tmp_path: Path) -> None:
    run = command(photos, tmp_path / "run", "--ranks.join-timeout", "1")
    with started(tmp_path, [None, run]) as ranks:
        assert ranks.codes(1) == [8]
        assert ranks.error(1) == (
            f"error: rank 1 of 2: cannot reach {ranks.where} within 1 s; rank 0 of 2 does not run there, or the address"
            " is wrong; check MASTER_ADDR and MASTER_PORT (torchrun --master-addr, --master-port)"
        )


def test_e10_a_port_in_use_is_named(photos: Path, tmp_path: Path) -> None:
    run = command(photos, tmp_path / "run", "--ranks.join-timeout", "1")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with started(tmp_path, [run, None], environment={"MASTER_PORT": str(other.getsockname()[1])}) as ranks:
            assert ranks.codes(0) == [8]
            assert "cannot listen at 127.0.0.1:" in ranks.error(0)
            assert "another process has that port; use another one: torchrun --master-port" in ranks.error(0)


def test_e11_a_signal_to_one_rank_ends_all_after_the_same_step(photos: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(tmp_path, [command(photos, run, *SAVE)] * 2, faults={0: "slow:3"}) as ranks:
        ranks.wait_until(lambda: len(metrics_if_any(run)) == 3)
        os.kill(ranks.pid(1), signal.SIGTERM)
        os.kill(ranks.pid(1), signal.SIGTERM)  # from torchrun and from a scheduler
        assert ranks.all_codes() == [75, 75], ranks.text(0) + ranks.text(1)
        assert ranks.error(0) == (
            "stopped: rank 0 of 2: pretrain after step 4, saved; on SIGTERM;"
            f" go on with smalti pretrain --resume {run}, on 2 processes"
        )
        assert "stopped" not in ranks.text(1)
    assert step_of(run) == 4
    assert_goes_on_exactly(run, whole)


def test_a_rank_that_fails_by_itself_is_quoted_by_the_others(photos: Path, tmp_path: Path) -> None:
    with started(tmp_path, [command(photos, tmp_path / "run")] * 2, faults={1: "fail:2"}) as ranks:
        assert ranks.all_codes() == [8, 3], ranks.text(0)
        assert "rank 1 of 2 has failed: the disk of this machine is gone; mount it; see its own" in ranks.error(0)


def test_a_folder_that_rank_0_refuses_is_refused_by_all(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with started(tmp_path, [command(photos, tmp_path / "run")] * 2) as ranks:
        assert ranks.all_codes() == [2, 8], ranks.text(1)
        assert f"rank 0 of 2 has failed: {tmp_path / 'run'} is not empty" in ranks.error(1)
    assert os.listdir(tmp_path / "run") == ["notes.txt"]


def test_other_verbs_are_not_started_by_many(tmp_path: Path) -> None:
    with started(tmp_path, [["check", "embedded"], None]) as ranks:
        assert ranks.codes(0) == [2]
        assert ranks.error(0).endswith("smalti check runs in one process, not in 2; start it without torchrun")


@pytest.mark.slow
def test_no_process_is_left(photos: Path, tmp_path: Path) -> None:
    """D10, of ranks and their data workers."""
    stream = ["--data.memory", "stream", "--data.num-workers", "1"]
    with started(tmp_path, [command(photos, tmp_path / "run", *stream)] * 2, faults={1: "kill:2"}) as ranks:
        assert ranks.codes(0, 1) == [8, -signal.SIGKILL], ranks.text(0)
        assert ranks.left() == []
