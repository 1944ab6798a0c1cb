"""What a run says."""

import io
import json
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from smalti.core.log import Log, print_json


class Screen(io.StringIO):
    """What a terminal is given."""

    def isatty(self) -> bool:
        return True


def test_records_are_json_lines_that_a_second_log_appends_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        log = Log(path)
        log.record(stage="mim", step=step, loss=0.5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"stage": "mim", "step": step, "loss": 0.5} for step in (1, 2)]


def test_a_record_can_be_read_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.record(step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_without_a_file_nothing_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Log().record(step=1)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_lines_go_to_standard_error_and_show_control_characters_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Log().say("bad \x1b[31mred\n[bold]name[/bold].jpg")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bad \\x1b[31mred\\n[bold]name[/bold].jpg\n"


def test_progress_off_a_terminal_is_a_plain_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Log().progress("tokenizer", 3) as bar:
        for done in (1, 2, 3):
            bar.update(done, note=f"loss {done}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tokenizer    3/3")
    assert lines[0].endswith("loss 3")


@pytest.mark.parametrize("variables", [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"TERM": "dumb"}])
def test_there_is_no_bar_in_what_only_variables_call_a_terminal_nor_on_a_dumb_one(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Builders, and kernels of notebooks for what they start, set FORCE_COLOR: ten control sequences a second."""
    log, written = Log(), Screen() if "TERM" in variables else io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    log.console = Console(stderr=True, width=80, highlight=False, _environ=variables)
    with log.progress("pretrain", 2) as bar:
        bar.update(2, "loss 1.0")
    assert written.getvalue() == "pretrain     2/2     0 s left  loss 1.0\n"


def test_the_time_left_of_a_resumed_run_is_that_of_the_steps_it_did_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Log().progress("pretrain", 10_000, 5000) as bar:
        bar.update(5010)
    assert capsys.readouterr().err == "pretrain     5010/10000  9980 s left  \n"


def test_a_bar_shows_the_time_left_where_steps_take_minutes() -> None:
    log, written, now = Log(), Screen(), [0.0]
    log.console = Console(file=written, force_terminal=True, width=80, color_system=None, get_time=lambda: now[0])
    with log.progress("pretrain", 10_000, 5000) as bar:
        for done in (5010, 5020):
            now[0] += 600
            bar.update(done)
    assert "5020/10000 83:00:00" in written.getvalue()


def test_a_name_beside_a_bar_cannot_steer_the_terminal() -> None:
    log, screen = Log(), Screen()
    log.console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    with log.progress("index MB", 2) as bar:
        bar.update(1, "\x1b]0;owned\x07[red]a.tar")
    assert "\x1b]0;" not in screen.getvalue()
    assert r"\x1b]0;owned\x07[red]a.tar" in screen.getvalue()


NOTE = "loss 4.886  bits 1.23  812 img/s  data wait 7%  accuracy 0.085  reference 4.863 (as far)  bound by computing"
LONG = "loss 1.234  codes 97%  1812 img/s  data wait 7%  nll 1.234  kl 0.123  bound by computing"
SHOWN = {
    40: "loss 4.886",
    60: "loss 4.886  bits 1.23  812 img/s",
    80: "loss 4.886  bits 1.23  812 img/s  data wait 7%",
    100: "loss 4.886  bits 1.23  812 img/s  data wait 7%",
    200: NOTE,
}


def line_at(width: int, title: str, total: int, note: str) -> str:
    """The last line that a terminal of this width shows; nothing of it is wrapped."""
    log, written = Log(), Screen()
    log.console = Console(file=written, force_terminal=True, width=width, highlight=False)
    with log.progress(title, total) as bar:
        bar.update(total // 3, note)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()).splitlines()
    shown = [line.strip("\r") for line in lines if line.strip()]
    assert all(len(line) <= width and line.startswith(title) for line in shown)
    return shown[-1]


@pytest.mark.parametrize("width", SHOWN)
def test_a_narrow_terminal_shows_step_and_time_left_and_drops_the_bar_and_numbers_from_the_end(width: int) -> None:
    line = line_at(width, "pretrain", 2786, NOTE)
    parts = re.fullmatch(r"pretrain +([━╸╺ ]*?) ?928/2786 ((?:\d+|-):(?:\d+|--):(?:\d+|--)) *(.*?) *", line)
    assert parts is not None, line
    assert parts[3] == SHOWN[width]
    assert len(parts[1]) == {40: 0, 60: 0, 80: 0, 100: 20, 200: 40}[width]


def test_eighty_columns_have_room_for_a_long_run() -> None:
    line = line_at(80, "tokenizer", 300_000, LONG)
    assert line.rstrip().endswith("loss 1.234  codes 97%  1812 img/s  data wait 7%")


def test_in_a_file_it_is_one_line_with_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    with Log().progress("pretrain", 2) as bar:
        bar.update(2, NOTE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(NOTE)


def test_print_json_is_one_line_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"knn": 0.5})
    assert capsys.readouterr().out == '{"knn": 0.5}\n'


def test_j09_where_there_is_no_standard_output_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    print_json({"knn": 0.5})
    assert capfd.readouterr() == ("", "")


def test_a_sink_is_given_every_line_also_where_there_is_no_file() -> None:
    log, lines = Log(), list[object]()
    log.also = lines.append
    log.record(step=1, loss=0.5)
    assert lines == [{"step": 1, "loss": 0.5}]
