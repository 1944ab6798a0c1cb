"""The teacher of a tokenizer that learns from a trained network: read, and cut to the block that is used."""

import shlex
from dataclasses import replace
from typing import NamedTuple

from smalti.core.compute import Compute
from smalti.core.config import require
from smalti.core.errors import UsageError
from smalti.core.log import Log
from smalti.data.load import Data
from smalti.data.values import Window
from smalti.models.cost_estimate import encoder_multiply_adds
from smalti.models.vit import VisionTransformer
from smalti.runs.folder import holds_run
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.tokenizers.vqkd import VQKD
from smalti.weights.read import is_foreign


class Teacher(NamedTuple):
    """A teacher, and what it decides.

    Attributes:
        tokenizer: the configuration with what is known of the teacher.
        data: images of the size and channels that the teacher sees.
        network: the part of it that is used, frozen.
        window: the value window of the teacher's images, if it has one.
    """

    tokenizer: KMeansFeatures | VQKD
    data: Data
    network: VisionTransformer
    window: Window | None


def read_teacher(tokenizer: TeacherBased, data: Data, compute: Compute, log: Log) -> Teacher:
    """Read the teacher that a configuration names.

    Raises:
        CheckpointError: there is none.
        UsageError: none is named, it is no network, or its images are not square.
    """
    place = tokenizer.teacher
    require(bool(place), "no teacher given", "use --tokenizer.teacher MODEL, as of pretrain or import")
    network, window = _network(place, compute)
    tokenizer, teacher = tokenizer.with_teacher(network)
    height, width = teacher.config.img_size
    require(height == width, f"the images of the teacher are {height}x{width}", "use a teacher of square images")
    rows, columns = teacher.config.grid
    log.say(
        f"teacher: block {tokenizer.layer} of {network.config.depth} of {place}, "
        f"{rows}x{columns} patches of images of {width} pixels and {teacher.config.in_chans} channels; "
        f"to encode one takes {encoder_multiply_adds(tokenizer.known_backbone) / 1e6:,.1f} M multiply-adds"
    )
    assert isinstance(tokenizer, KMeansFeatures | VQKD)
    return Teacher(tokenizer, replace(data, side=width, channels=teacher.config.in_chans), teacher, window)


def _network(place: str, compute: Compute) -> tuple[VisionTransformer, Window | None]:
    """The network of a MODEL, or of weights of timm or transformers, and its value window.

    Raises:
        CheckpointError: there is none.
        UsageError: it is a tokenizer; or weights of another program do not tell all that is needed.
    """
    from smalti.runs.foreign import read_foreign  # both load what `smalti train-tokenizer` usually does not need
    from smalti.runs.network import network_of  # which also loads tokenizers, and so imports this module

    if holds_run(place) or not is_foreign(place):
        network = network_of(place, compute)
        return network.backbone, network.window
    try:
        loaded, _ = read_foreign(place)
    except UsageError as error:
        fix = f"smalti import {shlex.quote(place)} with it, and give the folder that is written"
        raise UsageError(error.what, cause=error.cause, fix=f"{error.fix}: {fix}") from None
    return loaded.backbone.to(compute.device), None
