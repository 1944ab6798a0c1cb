"""Images that are too many for memory: read, decoded and cropped by workers while the network trains."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smalti.data.bad_files import BadFiles
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.loader import Views, colours
from smalti.data.sampler import SampledBatch
from smalti.data.transforms.colour import mirrored, recolour
from smalti.data.transforms.views import TwoViews
from smalti.data.workers.jobs import Renderer, Task


@dataclass(frozen=True)
class StreamedViewSource:
    """Shows images as workers render them: 8-bit pixels, mirrored and recoloured as a batch on the device."""

    source: ImageDataset
    views: TwoViews
    renderer: Renderer
    bad_files: BadFiles
    device: torch.device

    def prefetch(self, batches: Sequence[SampledBatch]) -> None:
        """Let the workers begin with these."""
        self.renderer.prefetch([_task(rows) for rows in batches])

    def close(self) -> None:
        """End the workers."""
        self.renderer.close()

    def __call__(self, rows: SampledBatch) -> Views:
        """Both views.

        Raises:
            DataError: too many images cannot be read.
        """
        rendered = self.renderer(_task(rows))
        self.bad_files.add(rendered.bad, seen=len(rows.index))
        label = self.source.labels_at(rendered.shown)
        flip = torch.from_numpy(self.views.crop.flips(rows.view_keys)).to(self.device)
        shown = [torch.from_numpy(pixels).to(self.device) for pixels in rendered.arrays]
        if self.views.jitter_when == "after_crop":
            change = colours(self.views, rows.view_keys, shown[-1])
            shown = [recolour(view, *change, flip) for view in shown]
        else:
            shown = [mirrored(view, flip) for view in shown]
        index = torch.from_numpy(rendered.shown.copy())  # the slot is used again
        return Views(shown[0], shown[1] if len(shown) > 1 else None, index, label)


def _task(rows: SampledBatch) -> Task:
    return Task(rows.index, rows.view_keys)
