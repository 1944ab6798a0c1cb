"""Network addresses in texts: what they are told by, and their forms without passwords and signatures."""

import re

SCHEMES = {"https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
"""The schemes of addresses that are read, each with the library that fsspec needs for it."""

_OTHERS = "http|ftp|ftps|sftp|ssh|gcs|s3a|s3n|abfss|wasb|wasbs|oss|ws|wss|file"
_FIRST = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]+:/+", re.IGNORECASE)
_LATER = re.compile(rf"(?<![a-z0-9+.-])(?:{'|'.join(SCHEMES)}|{_OTHERS}):/+", re.IGNORECASE)
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?", re.DOTALL)


def is_address(text: str) -> bool:
    """Whether a path is a network address, or meant as one: `http://`, `S3:/`; or a command, `pipe:`."""
    scheme, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return False
    return scheme == "pipe" or rest.startswith("//") or (scheme.lower() in {"http", *SCHEMES} and rest.startswith("/"))


def without_secrets(text: str) -> str:
    """A text without the user, password, query and fragment of the addresses in it.

    Where a query begins, the text ends: a signature may hold any character, so nothing tells where it ends.
    """
    found = _FIRST.search(text)
    if found is None or re.search("[@?#]", text) is None:
        return text
    begins = [found, *_LATER.finditer(text, found.end())]
    ends = [*(begin.start() for begin in begins[1:]), len(text)]
    kept = text[: found.start()]
    for begin, end in zip(begins, ends, strict=True):
        rest = text[begin.end() : end]
        kept += begin[0] + _public(rest)
        if re.search("[?#]", rest):
            break
    return kept


def _public(rest: str) -> str:
    """What follows the scheme of an address, without what may be secret; a part alone where that is not plain."""
    authority, *path = re.split("(?=[/?#])", rest, maxsplit=1)
    user, _, host = authority.rpartition("@")
    if user and "@" in "".join(path):
        return ""  # the password may have a slash in it, and then this is no host
    if _HOST.fullmatch(host) is None:
        return host.partition(":")[0]  # what follows is no port, and may be a part of a password
    return host + re.split("[?#]", "".join(path), maxsplit=1)[0]


def shown(text: str) -> str:
    """An address, or a text with one, for messages: without secrets, cut to 200 characters."""
    return without_secrets(text)[:200]
