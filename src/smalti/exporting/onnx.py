"""Export to ONNX, for any number of images and, where the network allows it, of any size."""

from pathlib import Path

import torch
from torch import Tensor

from smalti.exporting.certificate import Pairs
from smalti.exporting.graphs import compared, dynamic_shapes, example_of, graphs, without_warnings
from smalti.exporting.loaded_model import LoadedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_BYTES = 2**31 - 2**26
"""Larger weights than a file of ONNX can have, with some room, are stored beside it."""


def write(loaded: LoadedModel, folder: Path) -> str:
    """Write a file for each graph. Returns the lines of Python that run them."""
    shown = loaded.preprocessing
    shape = ", ".join(map(str, (1, shown.channels, *shown.size)))
    lines = [_BEGIN.format(shape=shape)]
    for name, graph in graphs(loaded).items():
        with without_warnings():
            program = torch.onnx.export(
                graph.module,
                (example_of(graph, loaded),),
                dynamo=True,
                input_names=[graph.input],
                output_names=list(graph.outputs),
                dynamic_shapes=dynamic_shapes(graph),
                verbose=False,
            )
            assert program is not None
            for part in (program.model.graph, *program.model.functions.values()):
                for node in part:
                    node.metadata_props.clear()  # the places of our source files
            size = sum(value.nbytes for value in graph.module.state_dict().values())
            program.save(folder / f"{name}.onnx", external_data=size > _MAX_BYTES)
        lines.append(f'{name} = onnxruntime.InferenceSession("FOLDER/{name}.onnx")')
        outputs = ", ".join(graph.outputs) if len(graph.outputs) > 1 else f"({graph.outputs[0]},)"
        lines.append(f'{outputs} = {name}.run(None, {{"{graph.input}": {graph.input}}})')
    return "\n".join(lines) + "\n"


_BEGIN = """import numpy as np
import onnxruntime

images = np.zeros(({shape}), np.float32)  # any number of images, in [0, 1]"""


@torch.no_grad()
def compare(loaded: LoadedModel, folder: Path, images: Tensor) -> Pairs:
    """The outputs of our network and of onnxruntime."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in graphs(loaded)
    }

    def run(name: str, batch: Tensor) -> tuple[Tensor, ...]:
        session = sessions[name]
        return tuple(map(torch.from_numpy, session.run(None, {session.get_inputs()[0].name: batch.numpy()})))

    return compared(loaded, images, run)
