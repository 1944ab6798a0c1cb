"""Network addresses in texts: what they are told by, and their forms without passwords and signatures."""

import re

SCHEMES = {"https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
"""The schemes of addresses that are read, each with the library that fsspec needs for it."""

_ADDRESS = re.compile(r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]+:/+)(.*)", re.IGNORECASE | re.DOTALL)
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
    found = _ADDRESS.search(text)
    if found is None:
        return text
    scheme, rest = found.groups()
    if re.search("[@?#]", rest) is None:
        return text
    return text[: found.start()] + scheme + _public(rest)


def _public(rest: str) -> str:
    """What follows the scheme of an address, without what may be secret."""
    authority = re.match(r"[^/?#\\]*", rest)
    assert authority is not None  # it may be empty
    host, path = authority[0].rpartition("@")[2], rest[authority.end() :]
    if _HOST.fullmatch(host) is None:
        return host.partition(":")[0]  # what follows is no port, and may be a part of a password
    return host + without_secrets(re.split("[?#]", path, maxsplit=1)[0])


def shown(text: str) -> str:
    """An address, or a text with one, for messages: without secrets, cut to 200 characters."""
    return without_secrets(text)[:200]
