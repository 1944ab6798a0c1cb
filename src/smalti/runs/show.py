"""`smalti show`: images as a model sees them, on a page or in a picture."""

from pathlib import Path
from typing import Any

from smalti.core.files import require_place, write_bytes
from smalti.report.page import Section
from smalti.report.pictures import png
from smalti.runs.folder import require_model_first
from smalti.runs.model_pictures import Show as Show
from smalti.runs.model_pictures import see
from smalti.runs.sections import write_page


def main(config: Show) -> dict[str, Any]:
    """Write the page or the picture.

    Raises:
        DataError: an image cannot be read.
        UsageError: the model has nothing of what is asked for.
        OutputError: the file cannot be written; this is checked before anything is computed.
    """
    target = Path(config.out).expanduser()
    require_place(target)
    for image in config.images:
        require_model_first(config.model, image)
    seen = see(config)
    if target.suffix.lower() == ".png":
        write_bytes(target, png(seen.picture()))
    else:
        section = Section("Views", seen.html(), seen.note)
        write_page(target, Path(config.model).name, "Images as the model sees them.", [section])
    print(f"written: {target}")
    return {"shown": str(target), "images": len(seen.captions)}
