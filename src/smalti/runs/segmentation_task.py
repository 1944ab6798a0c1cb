"""Semantic segmentation as a task of `smalti finetune`: network, objective, images and masks, and metrics."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError
from smalti.core.files import write_bytes
from smalti.core.log import Log
from smalti.data.datasets.dataset import ImageDataset
from smalti.data.datasets.layout import read_layout
from smalti.data.groups import numbered
from smalti.data.label_maps import (
    MaskReading,
    MaskValues,
    Numbering,
    SegmentationDataset,
    SegmentationViewSource,
    count_classes,
    open_pairs,
    read_class_names,
)
from smalti.data.load import AnyImages, Data, TrainingData
from smalti.data.loader import ViewSource
from smalti.data.mask_ids import AskedIds, Chosen, MaskTurn, OtherIds, choose_ids, describe_ids, require_ids
from smalti.data.reading import even_sample
from smalti.data.splits import few_labels, hold_out
from smalti.data.transforms.batch_transforms import BatchTransform
from smalti.data.transforms.views import TwoViews
from smalti.evaluation.supervised import confusion_on, ious_by_name, predict, scores_of
from smalti.functional.metrics import VOID, mean_iou, pixel_confusion
from smalti.models.segmenter import Linear, MultiLevel, Segmenter, build_segmenter
from smalti.models.vit import ViT
from smalti.report.page import Section, page
from smalti.report.pictures import Picture, false_colours, label_colours, outlined, scale_of, tile_row
from smalti.runs.model_selection import LabelledSplits, Measured, Shares
from smalti.training.objectives import Segment

_MAX_CLASSES = 254
_SHOWN = 12
"""Test images on the page, at most."""
_PAGE = "segmentation.html"
_BACKGROUND = {"background", "bg", "void", "unlabelled", "unlabeled", "other"}


@dataclass(frozen=True)
class Segmentation:
    """Say of every pixel which class it shows.

    DATA is a folder with the folders `images` and `masks` in it, a mask for each image under the same name in .png.
    Crops are cut from whole images, which are read again whenever they are shown: data.side, data.memory and the
    settings of workers and unreadable images play no part. Every image and mask is read once before the first step.
    RandAugment and erasing play no part either: they would move or remove pixels under their classes.
    """

    head: Linear | MultiLevel = MultiLevel()
    void: int = setting(255, "id of pixels without a class; they count nowhere")
    num_classes: int | None = setting(None, "classes; none: as many as class_names, or as the ids of DATA")
    class_names: str = setting("", "a text file: a name a line, in the order of ids, void left out; empty: the ids")
    images: str = setting("images", "the folder of images inside DATA")
    masks: str = setting("masks", "the folder of masks inside DATA: PNGs of 8-bit grey, the id of each pixel")
    ids: AskedIds = setting("all", "ids that are classes: all up to the greatest; auto: by what masks have; or a list")
    other_ids: OtherIds = setting("refuse", "pixels of ids that are not listed: an error, the nearest class, or void")
    mask_turn: MaskTurn = setting(
        "auto", "how masks of photographs lie that EXIF turns: stored, upright; auto: by size"
    )
    window: float = setting(1.0, "side of what is labelled at a time by that of the image; 1: each image in one pass")

    def __post_init__(self) -> None:
        require_ids(self.ids)
        require(0 <= self.void <= 255, f"the void id {self.void}", "use 0 to 255")
        require(
            self.num_classes is None or 2 <= self.num_classes <= _MAX_CLASSES,
            f"{self.num_classes} classes",
            f"use 2 to {_MAX_CLASSES}",
        )
        require(0 < self.window <= 1, f"a window of {self.window}", "use a share of the image's side in (0, 1]")

    @property
    def multi_label(self) -> bool:
        """An image shows any number of classes, so images are not selected by class."""
        return True

    @property
    def score(self) -> str:
        """The name of the score that selects the weights."""
        return "mean_iou"

    def images_of(self, path: str) -> str:
        """The folder of images inside DATA."""
        return os.path.join(path, self.images) if path else ""

    def images_inside(self, path: str) -> str:
        """The folder of images where DATA has images and masks; other DATA as it is."""
        place = Path(path).expanduser()
        both = all((place / name).is_dir() for name in (self.images, self.masks))
        return str(place / self.images) if both else path

    def open(
        self, data: Data, log: Log, bad_files: Path | None
    ) -> TrainingData[SegmentationDataset, SegmentationDataset]:
        """All images of DATA with their masks; `divide` holds some out.

        Raises:
            DataError: an image or a mask is missing or cannot be read, or they do not match.
        """
        layout = read_layout(data.path, data.follow_links)
        pairs = self._pairs(layout.train if data.path else "", data, data.limit)
        found = pairs.present(log)
        chosen = self._chosen(found, log)
        named = read_class_names(Path(self.class_names).expanduser()) if self.class_names else ()
        count = self.num_classes or len(named) or count_classes(found.masks, self.void)
        count = count if chosen is None else len(chosen.ids)
        if count < 2 or count > _MAX_CLASSES:
            fix = f"use 2 to {_MAX_CLASSES}, and --task.void; where ids have gaps, as 0 and 255: --task.ids auto"
            raise DataError(f"{pairs.masks} has {count} classes", fix=fix)
        require(
            len(named) in (0, count), f"{self.class_names} names {len(named)} classes", f"task.num_classes is {count}"
        )
        numbering = Numbering(self.void, count, chosen)
        scenes = _numbered(pairs, found.masks, numbering, named or tuple(map(str, numbering.ids)))
        log.say(f"{len(scenes)} images with masks of {count} classes")
        if layout.splits:
            log.say(f"note: splits: {layout.describe()}")
        held_out = scenes.select(np.arange(0))
        if layout.validation:
            resolved = self if chosen is None else replace(self, ids=chosen.ids, other_ids=chosen.other)
            held_out = resolved.read(layout.validation, data, scenes.classes, log)
        return TrainingData(scenes, held_out)

    def divide(
        self, given: AnyImages, data: Data, test: str, validation_data: str, shares: Shares, log: Log
    ) -> LabelledSplits:
        """Hold out the sets that are not given separately, then keep as many images as are asked for.

        Raises:
            DataError: there are too few images, those of a part show no class, or the separate ones do not match.
        """
        whole, held_out = given.train, given.held_out
        learn = np.arange(len(whole))
        groups = numbered(whole, data.group) if data.group else None
        if not (test and validation_data) and not len(held_out):
            learn, aside = hold_out(len(whole), data.held_out, 0, groups=groups)
            held_out = whole.select(aside)
        test_images: ImageDataset = self.read(test, data, whole.classes, log) if test else held_out
        validation: ImageDataset
        if validation_data:
            validation = self.read(validation_data, data, whole.classes, log)
        elif test:
            validation = held_out
        else:
            some = None if groups is None else groups[learn]
            places, chosen = hold_out(len(learn), shares.validation, shares.seed, groups=some)
            learn, validation = learn[places], whole.select(learn[chosen])
        if min(len(learn), len(validation), len(test_images)) == 0:
            cause = "some are learned from, some are for choices and some for the test"
            raise DataError(f"only {len(whole)} images with masks", cause=cause, fix="give 3 at least")
        few = few_labels(np.zeros(len(whole), np.int64), learn, shares.labels, None, shares.seed)
        divided = LabelledSplits(TrainingData(whole.select(few), validation), test_images)
        parts = {"to learn from": divided.train.train, "for choices": validation, "for the test": test_images}
        if useless := next((role for role, part in parts.items() if not _has_classes(part)), ""):
            cause, fix = "their masks are void everywhere", "give more, or --test and --validation-data"
            raise DataError(f"the {len(parts[useless])} images {useless} show no class", cause=cause, fix=fix)
        return divided

    def read(self, path: str, data: Data, outputs: tuple[str, ...], log: Log) -> SegmentationDataset:
        """All images and masks of another folder, with the same classes.

        Raises:
            DataError: one of them is missing or cannot be read, or they do not match.
        """
        pairs = self._pairs(path, data, None)
        return _numbered(pairs, pairs.present(log).masks, self.numbering(len(outputs)), outputs)

    def numbering(self, count: int) -> Numbering:
        """What the ids of a settled task mean, which has `count` classes."""
        chosen = None if isinstance(self.ids, str) else Chosen(self.ids, self.other_ids)
        return Numbering(self.void, count, chosen)

    def resolved(self, images: ImageDataset) -> "Segmentation":
        """The task with the ids of classes as chosen, so that they are the same for all masks that follow."""
        numbering = getattr(images, "numbering", None)
        if numbering is None or numbering.chosen is None:
            return self
        return replace(self, ids=numbering.chosen.ids, other_ids=numbering.chosen.other)

    def _chosen(self, found: MaskValues, log: Log) -> Chosen | None:
        if self.ids == "all":
            return None
        if not isinstance(self.ids, str):
            return Chosen(self.ids, self.other_ids)
        chosen = choose_ids(found.counts, self.void)
        log.say(describe_ids(found.counts, chosen))
        return chosen

    def _pairs(self, path: str, data: Data, limit: int | None) -> SegmentationDataset:
        if not path:
            raise DataError("no images given", fix="use --data FOLDER")
        folder, window = Path(path).expanduser(), data.known_window
        reading = MaskReading(self.mask_turn, listed=self.ids != "all")
        return open_pairs(folder, self.images, self.masks, data.channels, data.follow_links, limit, window, reading)

    def view_source(
        self, images: AnyImages, views: TwoViews, data: Data, batch_size: int, device: torch.device
    ) -> ViewSource:
        return SegmentationViewSource(images.train, views)

    def outputs(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The names of the network's outputs: all classes."""
        return classes

    def build(self, backbone: ViT, outputs: tuple[str, ...], seed: int = 0) -> Segmenter:
        """A network with randomly initialised weights."""
        return build_segmenter(backbone, len(outputs), self.head, seed)

    def objective(self, model: nn.Module) -> Segment:
        assert isinstance(model, Segmenter)
        return Segment(model, self.head.auxiliary)

    def batch_transforms(self, classes: tuple[str, ...]) -> tuple[BatchTransform, ...]:
        """The last transforms of each batch: none."""
        return ()

    def measure(
        self, model: nn.Module, images: ImageDataset, outputs: tuple[str, ...], size: tuple[int, int], compute: Compute
    ) -> Measured:
        """Evaluate a network with these outputs."""
        found = confusion_on(model, images, size, self.window, compute)
        return Measured(scores_of(found), ious_by_name(found, outputs))

    def pictures(
        self,
        model: nn.Module,
        images: ImageDataset,
        outputs: tuple[str, ...],
        size: tuple[int, int],
        compute: Compute,
        show_channels: tuple[int, ...] | None = None,
    ) -> Section:
        """Some images with the outlines of what their masks and the network say, and the mean IoU of each."""
        shown = images.select(np.array(even_sample(len(images), _SHOWN)))
        scenes = [shown[index] for index in range(len(shown))]
        predicted = predict(model, [scene.image for scene in scenes], size, self.window, compute)
        drawn: dict[str, list[Picture]] = {"image": [], "truth": [], "predicted": []}
        captions, neutral = [], _neutral(outputs)
        for index, (scene, guess) in enumerate(zip(scenes, predicted, strict=True)):
            assert scene.label_map is not None
            table = pixel_confusion(guess, torch.from_numpy(scene.label_map), len(outputs))
            captions.append(f"{shown.key(index)}: mean IoU {mean_iou(table):.0%}")
            picture = false_colours(scene.image, show_channels)
            drawn["image"].append(picture)
            for name, label_map in (("truth", scene.label_map), ("predicted", guess.numpy())):
                drawn[name].append(outlined(picture, label_map, (VOID, *neutral)))
        there = [number for number in range(len(outputs)) if number not in neutral]
        legend = [label_colours(np.full((12, 24), number, np.uint8), VOID) for number in there]
        scale = scale_of(scenes[0].image.shape[1])
        html = tile_row(drawn, scale=scale, captions=captions) + tile_row(
            {"": legend}, scale=1, captions=[outputs[number] for number in there], across=6
        )
        apart = f" {', '.join(outputs[number] for number in neutral)}: no outline." if neutral else ""
        note = f"Whole test images, with the outlines of what their masks say and of what the network says.{apart}"
        return Section("Images, truth and prediction", html, note)

    def write_page(
        self,
        folder: Path,
        model: nn.Module,
        images: ImageDataset,
        size: tuple[int, int],
        compute: Compute,
        show_channels: tuple[int, ...] | None = None,
    ) -> None:
        """Write a page of some images with their ground truth and the network's predictions."""
        section = self.pictures(model, images, images.classes, size, compute, show_channels)
        write_bytes(folder / _PAGE, page(folder.name, "What a network says of every pixel.", [section], {}).encode())


def _has_classes(scenes: ImageDataset) -> bool:
    """Whether some pixel has a class; masks are read up to the first one with such a pixel."""
    label_maps = (scenes[index].label_map for index in range(len(scenes)))
    return any(bool((found != VOID).any()) for found in label_maps if found is not None)


def _neutral(outputs: tuple[str, ...]) -> tuple[int, ...]:
    """What is called background; without names it is the first class, as almost everywhere."""
    if outputs == tuple(map(str, range(len(outputs)))):
        return (0,)
    return tuple(number for number, name in enumerate(outputs) if name.strip("_ ").lower() in _BACKGROUND)


def _numbered(
    pairs: SegmentationDataset, present: Mapping[int, Path], numbering: Numbering, classes: tuple[str, ...]
) -> SegmentationDataset:
    """The pairs with their mask ids as class numbers, once all ids in the masks are known."""
    if present.keys() == {numbering.void}:
        raise DataError(f"{pairs.masks} has void pixels only", fix="check --task.void")
    for number, mask in present.items():
        numbering.require(number, str(mask))
    return pairs.numbered(numbering, classes)
