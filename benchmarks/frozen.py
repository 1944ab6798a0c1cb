"""Frozen features of a network on images with labels, by all protocols of `smalti evaluate`; for the studies."""

from collections.abc import Iterable, Iterator

from smalti.core.compute import Compute
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.evaluation.battery import Battery, BatteryResult
from smalti.models.vit import VisionTransformer

_USUAL = Battery()


def battery(
    backbone: VisionTransformer,
    train: InMemoryDataset,
    test: InMemoryDataset,
    compute: Compute,
    seed: int = 0,
    protocol: Battery = _USUAL,
) -> BatteryResult:
    """What frozen features are worth: k-NN, linear probe and few labels, from one pass over the images."""
    return next(batteries(backbone, train, test, compute, [seed], protocol))


def batteries(
    backbone: VisionTransformer,
    train: InMemoryDataset,
    test: InMemoryDataset,
    compute: Compute,
    seeds: Iterable[int],
    protocol: Battery = _USUAL,
) -> Iterator[BatteryResult]:
    """The same for several seeds, which draw validation images and few labels; features are computed once."""
    parts = [protocol.features(backbone, part, compute) for part in (train, test)]
    for seed in seeds:
        yield protocol(parts[0], train.labels, parts[1], test.labels, seed)
