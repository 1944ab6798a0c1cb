"""What must be as it was for a run to go on bit for bit, and when there is nothing left to do."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from smalti.core.config import Field, leaves
from smalti.core.errors import LockError, OutputError, UsageError
from smalti.core.log import Log
from smalti.runs.folder import RunFolder, writing
from smalti.training.checkpoint import has_checkpoint, read_checkpoint


def changes(before: object, now: object) -> list[tuple[Field, str]]:
    """Each field that differs, and `optimiser.lr 0.001 -> 0.002`; the run folder itself may have moved."""
    configs = [{field.name: field for field in leaves(config)} for config in (before, now)]
    found = []
    for name, field in (configs[0] | configs[1]).items():
        values = [config[name].value if name in config else None for config in configs]
        if name != "out" and values[0] != values[1]:
            shown = (value if name in config else "none" for value, config in zip(values, configs, strict=True))
            found.append((field, f"{name} {' -> '.join(map(str, shown))}"))
    return found


def require_same_settings(run: str, before: object, now: object, allow_inexact: bool) -> None:
    """Say what differs in the settings of a run that goes on.

    Which fields may differ is said where they are defined (`core.config.Resume`); whether images are others is found
    out from the images themselves.

    Raises:
        UsageError: it is more than how long, how often and from where; and that is not allowed.
    """
    rolls_back = getattr(getattr(before, "plan", None), "rollback", 0) > 0
    free = {"free"} if rolls_back else {"free", "free_without_rollback"}
    differing = changes(before, now)
    if differing:
        Log().say(f"settings that have changed: {', '.join(line for _, line in differing)}")
    require_exact(run, [line for field, line in differing if field.resume not in free], allow_inexact)


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
