"""A program that runs commands of smalti and writes down what no command may do: talk, start programs, unpickle.

    python watched.py EVENTS < commands, one JSON list a line

Once added, a hook cannot be taken away; so this runs in a process of its own.
"""

import json
import sys
import traceback
from typing import Any

FORBIDDEN = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "subprocess.", "os.system", "os.exec", "os.spawn")
"""Beginnings of the names of events."""
ALSO_FORBIDDEN = (
    "os.posix_spawn",
    "os.startfile",
    "pickle.find_class",
    "ctypes.dlopen",
    "webbrowser.open",
    "pty.spawn",
)


def main(events: str) -> int:
    """Run what standard input says. Returns the greatest exit code."""
    import smalti.runs.demo
    import smalti.runs.evaluate
    import smalti.runs.import_model
    import smalti.runs.report
    import smalti.runs.tokenize  # noqa: F401
    from smalti.cli import main

    commands = [json.loads(line) for line in sys.stdin]
    with open(events, "w") as file:

        def note(name: str, arguments: tuple[Any, ...]) -> None:
            own_library = name == "ctypes.dlopen" and arguments == (None,)
            if (name.startswith(FORBIDDEN) or name in ALSO_FORBIDDEN) and not own_library:
                stack = "".join(traceback.format_stack(limit=12))
                file.write(json.dumps({"event": name, "arguments": repr(arguments)[:300], "stack": stack}) + "\n")
                file.flush()

        sys.addaudithook(note)
        return max(main(command) for command in commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
