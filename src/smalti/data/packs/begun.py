"""What of a pack is there already, and whether it may be gone on with."""

import re
from collections.abc import Sequence
from pathlib import Path

from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.data.packs.files import check_digest, read_about, read_index
from smalti.data.packs.format import ABOUT, About, DamagedPackError, Header, Settings, bin_path, index_path
from smalti.data.packs.part_writer import writing

_OWN = re.compile(r"part-\d{5,}\.(bin|index)|pack\.json|bad_files\.jsonl")
_UNFINISHED = re.compile(rf"\.({_OWN.pattern})(\.[0-9a-f]{{32}})?")


def require_own(folder: Path) -> None:
    """Never write among other things: a folder of photographs, say.

    Raises:
        UsageError: something else lies there.
    """
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(".") and not _OWN.fullmatch(entry.name):
            what, cause = f"{folder} is not empty", f"{entry.name} is no part of a pack"
            raise UsageError(what, cause=cause, fix="choose another --out")


def whole_parts(folder: Path, settings: Settings, log: Log) -> list[Header]:
    """The parts that are there, up to the first that is not as it was written; all of each is read and compared.

    Raises:
        UsageError: they were made under other settings.
        DataError: one cannot be read, or is of another version: this is no reason to throw it away.
    """
    about = _about(folder)
    if about is not None:
        about.settings.require(settings, folder)
    headers, damage = _headers(folder)
    for header in headers:
        header.settings.require(settings, folder)
    whole: list[Header] = []
    with log.progress("verify", len(headers)) as bar:
        for number, header in enumerate(headers):
            try:
                check_digest(bin_path(folder, number), header.part)
                if header.start != (whole[-1].stop if whole else 0):
                    raise DamagedPackError(index_path(folder, number), "it does not follow the part before")
            except DamagedPackError as error:
                damage = error
                break
            whole.append(header)
            bar.update(len(whole))
    if whole:
        images = sum(header.part.images for header in whole)
        log.say(f"{folder}: {images} images are there already, parts 0 to {len(whole) - 1}")
    if damage is not None:
        log.say(f"{damage.what}; {damage.cause}; it is written again, with all that follows")
    return whole


def _headers(folder: Path) -> tuple[list[Header], DamagedPackError | None]:
    """Those of the indices that are there, up to the first damaged one."""
    headers: list[Header] = []
    while (path := index_path(folder, len(headers))).exists():
        try:
            headers.append(read_index(path)[0])
        except DamagedPackError as error:
            return headers, error
    return headers, None


def finished(folder: Path, headers: Sequence[Header], total: int) -> About | None:
    """What pack.json says, where it is there and true of parts that deal with `total` images."""
    about = _about(folder)
    if about is None or not headers or headers[-1].stop != total:
        return None
    return about if about.parts == tuple(header.part for header in headers) else None


def clear(folder: Path, kept: int) -> None:
    """Remove pack.json first, then what follows the parts to keep and what a killed run left behind.

    Raises:
        OutputError: it cannot be removed.
    """
    keep = {path(folder, number) for number in range(kept) for path in (bin_path, index_path)}
    with writing(folder):
        (folder / ABOUT).unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry not in keep and (_OWN.fullmatch(entry.name) or _UNFINISHED.fullmatch(entry.name)):
                entry.unlink()


def _about(folder: Path) -> About | None:
    """pack.json, where it is there and sound."""
    if not (folder / ABOUT).exists():
        return None
    try:
        return read_about(folder)
    except DamagedPackError:
        return None
