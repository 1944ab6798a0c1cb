"""What must be as it was for a run to go on bit for bit, and when there is nothing left to do."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from smalti.core.config import leaves
from smalti.core.errors import LockError, OutputError, UsageError
from smalti.core.log import Log
from smalti.runs.folder import RunFolder, writing
from smalti.training.checkpoint import has_checkpoint, read_checkpoint

_FREE = {
    "profile",
    "reference",
    "accept_tokenizer",
    "token_cache",
    "plan.steps",
    "plan.log_every",
    "plan.save_every",
    "plan.skip_nonfinite",
    "data.path",
    "data.num_workers",
    "data.worker_timeout",
    "data.max_bad_fraction",
}
"""Fields that may change when a run goes on. Whether images are others is found out from the images themselves."""

_PART_OF_ROLLBACKS = {"plan.log_every", "plan.save_every"}
"""Which losses are looked at, and where the checkpoints are that a run goes back to."""


def changes(before: object, now: object) -> list[str]:
    """`optimiser.lr 0.001 -> 0.002` for each field that differs; the run folder itself may have moved."""
    then = {field.name: field.value for field in leaves(before)}
    found = {field.name: field.value for field in leaves(now)}
    return [
        f"{name} {then.get(name, 'none')} -> {found.get(name, 'none')}"
        for name in then | found
        if name != "out" and then.get(name) != found.get(name)
    ]


def require_same_settings(run: str, before: object, now: object, allow_inexact: bool) -> None:
    """Say what differs in the settings of a run that goes on.

    Raises:
        UsageError: it is more than how long, how often and from where; and that is not allowed.
    """
    rolls_back = getattr(getattr(before, "plan", None), "rollback", 0) > 0
    free = _FREE - _PART_OF_ROLLBACKS if rolls_back else _FREE
    differing = changes(before, now)
    if differing:
        Log().say(f"settings that have changed: {', '.join(differing)}")
    require_exact(run, [line for line in differing if line.split()[0] not in free], allow_inexact)


def require_exact(run: str, differing: list[str], allow_inexact: bool) -> None:
    """Stop a run that would not go on bit for bit.

    Raises:
        UsageError: something differs, and that is not allowed.
    """
    if differing and not allow_inexact:
        raise UsageError(
            f"the run in {run} cannot go on bit for bit",
            cause=", ".join(differing),
            fix="go on as it began, or use --allow-inexact",
        )
    if differing:
        Log().say(f"not bit for bit from here on: {', '.join(differing)}")


def finished(run: str, before: Any, now: Any) -> dict[str, Any] | None:
    """The result of a run that has nothing to do any more; None where it has, as where its last checkpoint is damaged.

    What is fitted and not trained has 0 steps.

    Raises:
        CheckpointError: all of them are.
    """
    path = Path(run).expanduser()
    try:
        result = RunFolder(path).read_result()
    except (OSError, json.JSONDecodeError):
        return None
    if before != now or result.get("steps") not in (0, now.plan.steps) or not has_checkpoint(path):
        return None
    if read_checkpoint(path).step != result["steps"]:
        return None
    with suppress(LockError, OutputError), writing(run):
        pass  # it may have been killed after its result, and before its lock was gone
    Log().say(f"{run}: already complete at step {result['steps']}")
    return result
