"""`smalti import`: the public DALL-E tokenizer, from the two files it was published in."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from smalti import __version__
from smalti.core.config import require, setting, to_json
from smalti.core.errors import UsageError
from smalti.core.files import require_place, sha256, write_folder
from smalti.runs.tokenizers import IMPORTED_CONFIG, IMPORTED_WEIGHTS
from smalti.weights.dalle import read_dalle


@dataclass(frozen=True)
class ImportTokenizer:
    """Which files, and where to. They are read without running anything in them."""

    files: tuple[str, str]
    """encoder.pkl and decoder.pkl."""
    out: str = setting("", "the folder to write, a MODEL")

    def __post_init__(self) -> None:
        require(bool(self.out), "no folder to write", "use --out MODEL")


def main(config: ImportTokenizer) -> dict[str, Any]:
    """Read, check and write the tokenizer.

    Returns:
        Its configuration, how many parameters it has, and the digests of the source files.

    Raises:
        UsageError: the output folder is not empty.
        CheckpointError: the files are not the two halves of a DALL-E tokenizer, are damaged, or ask for anything else.
    """
    out = Path(config.out).expanduser()
    require_place(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", cause="an import never overwrites", fix="choose another --out")
    paths = [Path(file).expanduser() for file in config.files]
    tokenizer, weights = read_dalle(paths)
    sources = {path.name: sha256(path.read_bytes()) for path in paths}
    about = {"smalti": __version__, "config": to_json(tokenizer), "sources": sources}
    write_folder(out, {IMPORTED_CONFIG: (json.dumps(about, indent=2) + "\n").encode(), IMPORTED_WEIGHTS: save(weights)})
    parameters = sum(value.numel() for value in weights.values())
    return {"out": config.out, "tokenizer": to_json(tokenizer), "parameters": parameters, "sources": sources}
