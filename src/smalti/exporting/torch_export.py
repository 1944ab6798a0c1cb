"""Export as programs of torch.export (.pt2), which run without smalti and compile ahead of time by AOTInductor."""

from pathlib import Path

import torch
from torch import Tensor

from smalti.exporting.certificate import Pairs
from smalti.exporting.graphs import compared, dynamic_shapes, example_of, graphs, without_warnings
from smalti.exporting.loaded_model import LoadedModel

PACKAGES = ()


def write(loaded: LoadedModel, folder: Path) -> str:
    """Write an archive for each graph. Returns the lines of Python that run them."""
    shown = loaded.preprocessing
    lines = [_BEGIN.format(shape=", ".join(map(str, (1, shown.channels, *shown.size))))]
    for name, graph in graphs(loaded).items():
        with without_warnings():
            program = torch.export.export(
                graph.module, (example_of(graph, loaded),), dynamic_shapes=dynamic_shapes(graph)
            )
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # the places of our source files
            program.example_inputs = None  # would be pickled
            torch.export.save(program, folder / f"{name}.pt2")
        lines.append(f'{name} = torch.export.load("FOLDER/{name}.pt2").module()')
        lines.append(f"{', '.join(graph.outputs)} = {name}({graph.input})")
    return "\n".join(lines) + "\n"


_BEGIN = """import torch

images = torch.zeros({shape})  # any number of images, in [0, 1]"""


@torch.no_grad()
def compare(loaded: LoadedModel, folder: Path, images: Tensor) -> Pairs:
    """The outputs of our network and of the programs."""

    def load(name: str) -> torch.nn.Module:
        with without_warnings():
            return torch.export.load(folder / f"{name}.pt2").module()

    programs = {name: load(name) for name in graphs(loaded)}
    return compared(loaded, images, lambda name, batch: programs[name](batch))
