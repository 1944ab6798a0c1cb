"""What is installed: packages that are too old, all of them for a bug report, and what a run was computed with.

Some older versions have known vulnerabilities. Systems that the package runs on.
"""

import importlib.util
import platform
import re
from importlib import metadata

from smalti.core.errors import UsageError


def require_system() -> None:
    """Raise a UsageError on a system without POSIX locks, as Windows is."""
    if importlib.util.find_spec("fcntl") is None:
        cause = "this system has no fcntl, which locks run folders"
        raise UsageError("smalti runs on Linux and macOS", cause=cause, fix="on Windows use WSL")


def outdated(package: str = "smalti") -> list[str]:
    """One message for each installed package that is older than the minimum that `package` requires."""
    found = []
    for requirement in _requirements(package):
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement)  # those of extras have a marker
        if match and (there := _version(match[1])) and _numbers(there) < _numbers(match[2]):
            found.append(f"{match[1]} {there} is installed, and {match[2]} or later is needed")
    return found


def environment() -> dict[str, str]:
    """What this process computes with, for config.json."""
    return {"python": platform.python_version(), "torch": _version("torch"), "machine": platform.machine()}


def installed() -> dict[str, str]:
    """The versions of Python, the system, smalti, and of all that it needs or can use and that is there."""
    needed = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in _requirements("smalti")]
    there = {name: _version(name) for name in ("smalti", *needed)}
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    return {name: version for name, version in there.items() if version} | {
        "python": python,
        "platform": platform.platform(),
    }


def _requirements(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:  # run from its sources
        return []


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # importing it will say so
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """`2.14.1+cpu` as (2, 14, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
