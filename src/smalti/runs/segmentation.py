"""Semantic segmentation as a task of `smalti finetune`: network, objective, images and masks, and what is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smalti.core.compute import Compute
from smalti.core.config import require, setting
from smalti.core.errors import DataError, UsageError
from smalti.core.log import Log
from smalti.data.changes import Change
from smalti.data.few_labels import put_aside
from smalti.data.label_maps import Numbering, count_classes, read_class_names
from smalti.data.load import Data, Images, StoredImages
from smalti.data.loader import Gallery
from smalti.data.scene_gallery import SceneGallery
from smalti.data.scenes import Pairs, SceneImages, Scenes, open_pairs
from smalti.data.sources.resident import Resident
from smalti.data.views import TwoViews
from smalti.evaluation.segmentation import confusion_on, ious_by_name, predict, scores_of
from smalti.models.segmenter import Linear, MultiLevel, Segmenter, build_segmenter
from smalti.models.vit import ViT
from smalti.report.page import Section, table
from smalti.report.pictures import label_colours, tile_row
from smalti.runs.labelled import Labelled, Shares
from smalti.training.segment import Segment

_MOST_CLASSES = 254
_SHOWN = 12
