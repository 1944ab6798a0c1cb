"""One class, and one exit code, a kind of failure."""

import pytest

from smalti.core import errors

CODES = {
    "UsageError": 2,
    "DataError": 3,
    "CheckpointError": 4,
    "NumericError": 5,
    "OutputError": 6,
    "DistributedError": 8,
    "RefusedError": 9,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes_are_those_of_the_manual(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code
    assert issubclass(getattr(errors, name), errors.SmaltiError)


def test_exit_codes_without_a_class() -> None:
    assert (errors.EXIT_OUT_OF_MEMORY, errors.EXIT_PREEMPTED, errors.EXIT_INTERRUPTED) == (12, 75, 130)


def test_a_message_is_what_cause_and_fix_on_one_line() -> None:
    whole = errors.DataError("cannot read x", cause="no such file", fix="check it")
    assert str(whole) == "cannot read x; no such file; check it"
    assert str(errors.DataError("cannot read x", fix="check it")) == "cannot read x; check it"
    error = errors.DataError("cannot read x", cause="no such file")
    assert (error.what, error.cause, error.fix) == ("cannot read x", "no such file", "")
