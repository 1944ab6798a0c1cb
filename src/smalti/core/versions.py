"""Versions of what is installed: what a run was computed with, and what is older than this package requires.

Some older versions have known vulnerabilities.
"""

import platform
import re
from importlib import metadata


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
