"""Files that are often found where weights should be."""

from pathlib import Path

_LFS = b"version https://git-lfs.github.com/"
_HTML = (b"<!doctype html", b"<html")


def mistaken_for_weights(path: Path) -> str:
    """What a file is, in words, where its first bytes tell; empty where they do not."""
    try:
        with open(path, "rb") as file:
            first = file.read(256).lstrip().lower()
    except OSError:
        return ""
    if first.startswith(_LFS):
        return "a pointer of Git LFS, without the file that it points to (git lfs pull)"
    return "a web page, perhaps an error of a server" if first.startswith(_HTML) else ""
