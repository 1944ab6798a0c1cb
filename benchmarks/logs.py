"""What is kept of the log of a run beside its result."""

import json
from pathlib import Path

from smalti.runs.folder import RunFolder

_LOGGED = 100
"""Lines of a log that are kept, at most."""


def write_log(run: Path, target: Path) -> None:
    """The metrics of a run, at most 100 lines; nothing of one that has none, as a tokenizer that is fitted."""
    lines = RunFolder(run).read_metrics()
    every = -(-len(lines) // _LOGGED)
    if lines:
        target.write_text("".join(json.dumps(line) + "\n" for line in lines[every - 1 :: every]))
