"""Images with masks: what is refused before training, and one crop, mirror and scale for both."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.core.contracts import Sample
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.label_maps import Numbering, SegmentationDataset, SegmentationViewSource, cut, open_pairs, render_view
from smalti.data.loader import Loader, Sampler, ViewSource
from smalti.data.transforms.views import NO_JITTER, Box, ColorJitter, RandomResizedCrop, TwoViews, WholeImage
from smalti.functional.metrics import VOID
from tests import oracles
from tests.contracts import check_dataset
from tests.small_runs import scenes

CLASSES = ("around", "red", "blue")
COLOURS = torch.tensor([[40, 40, 40], [200, 60, 60], [60, 60, 200]]) / 255
CROP = TwoViews(RandomResizedCrop(scale=(0.3, 1.0)), (20, 28))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes") / "train", 9)


def opened(folder: Path) -> SegmentationDataset:
    return pairs_of(folder).numbered(Numbering(11, 3), CLASSES)


def pairs_of(folder: Path, limit: int | None = None) -> SegmentationDataset:
    return open_pairs(folder, "images", "masks", 3, "inside", limit)


def test_an_image_comes_with_the_mask_of_its_name(folder: Path) -> None:
    found = opened(folder)
    assert len(found) == 9
    image, label_map = found[4].image, found[4].label_map
    check_dataset(found)
    assert np.array_equal(image, np.asarray(Image.open(folder / "images" / "04.png")))
    ids = np.asarray(Image.open(folder / "masks" / "04.png"))
    assert label_map is not None
    assert np.array_equal(label_map, np.where(ids == 11, VOID, ids))
    assert found.key(4) == "04.png"
    assert np.array_equal(found.select(np.array([4, 1]))[0].image, image)
    assert len(pairs_of(folder, limit=4)) == 4


def test_every_pair_is_read_before_training(folder: Path) -> None:
    assert set(pairs_of(folder).present(Log()).masks) == {0, 1, 2, 11}


def test_names_and_lengths_tell_scenes_apart(folder: Path, tmp_path: Path) -> None:
    assert opened(folder).fingerprint() == opened(folder).fingerprint()
    assert opened(folder).fingerprint() != opened(folder).select(np.arange(8)).fingerprint()
    other = scenes(tmp_path / "other", 9)
    before = opened(other).fingerprint()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(other / "masks" / "03.png")
    assert opened(other).fingerprint() != before


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_missing_folder_is_named(tmp_path: Path, kind: str) -> None:
    made = scenes(tmp_path / "train", 2)
    (made / kind).rename(made / "elsewhere")
    with pytest.raises(DataError) as caught:
        pairs_of(made)
    fix = f"segmentation reads {made / 'images'} and {made / 'masks'}; other names: --task.images, --task.masks"
    assert str(caught.value) == f"no folder of {kind} {made / kind}; it does not exist; {fix}"


def test_missing_masks_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    made = scenes(tmp_path / "train", 4)
    for number in ("01", "03"):
        (made / "masks" / f"{number}.png").unlink()
    with pytest.raises(DataError) as caught:
        pairs_of(made)
    first, mask = made / "images" / "01.png", made / "masks" / "01.png"
    assert str(caught.value) == f"2 of 4 images have no mask; {first} is the first; it needs {mask}"


def test_a_mask_that_does_not_lie_on_its_image_is_found_before_training(tmp_path: Path) -> None:
    made = scenes(tmp_path / "train", 4)
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(made / "masks" / "02.png")
    with pytest.raises(DataError, match=r"02\.png does not lie on its image; the mask has 30x24 pixels, its image 32x"):
        pairs_of(made).present(Log())


BOXES = st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 0.5), st.floats(0.1, 0.5))


@given(box=BOXES, flip=st.booleans(), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_classes_are_those_of_the_nearest_pixels(box: Box, flip: bool, size: tuple[int, int]) -> None:
    label_map = np.arange(77, dtype=np.uint8).reshape(7, 11)
    assert np.array_equal(cut(label_map, box, flip, size), oracles.nearest(label_map, box, flip, size))


@given(key=st.integers(0, 2**64 - 1))
def test_pixels_and_classes_are_of_the_same_places(key: int) -> None:
    """Colours that are enlarged say which class they are of, but at edges, where the filter mixes them."""
    rng = np.random.default_rng(3)
    label_map = rng.integers(0, 3, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    pixels = (COLOURS.numpy()[label_map] * 255).round().astype(np.uint8)
    for size in ((48, 64), (60, 60)):
        views = TwoViews(RandomResizedCrop(scale=(0.2, 0.9)), size)
        image, shown = render_view(Sample(pixels, -1, "", label_map), views, np.uint64(key))
        nearest = (image[None] - COLOURS[:, :, None, None]).abs().sum(1).argmin(0)
        assert float((nearest == shown).float().mean()) > 0.9


def test_the_whole_image_at_its_size_is_itself(folder: Path) -> None:
    scene = opened(folder)[2]
    image, label_map = render_view(scene, TwoViews(WholeImage(), (24, 32)), np.uint64(1))
    torch.testing.assert_close(image, torch.from_numpy(scene.image).permute(2, 0, 1) / 255, atol=1e-5, rtol=0)
    assert scene.label_map is not None
    assert np.array_equal(label_map.numpy(), scene.label_map)


@pytest.mark.parametrize("before_crop", [False, True])
def test_colours_change_the_pixels_alone(folder: Path, before_crop: bool) -> None:
    scene, jitter = opened(folder)[0], ColorJitter(before_crop=before_crop)
    plain = render_view(scene, TwoViews(CROP.crop, CROP.size, jitter=NO_JITTER), np.uint64(5))
    changed = render_view(scene, TwoViews(CROP.crop, CROP.size, jitter=jitter), np.uint64(5))
    assert torch.equal(plain.label_map, changed.label_map)
    assert not torch.allclose(plain.image, changed.image, atol=0.01)


def test_a_batch_is_a_function_of_its_step(folder: Path) -> None:
    view_source = SegmentationViewSource(opened(folder), CROP)
    assert isinstance(view_source, ViewSource)
    loader, order = Loader(view_source, Sampler(9, 4, seed=3)), Sampler(9, 4, seed=3)
    batches = [loader(step) for step in range(6)]
    loader.close()
    assert view_source.begun.keys() <= {
        (int(index), int(key))
        for step in (6, 7)
        for index, key in zip(order(step).index, order(step).view_keys, strict=True)
    }
    other = Loader(SegmentationViewSource(opened(folder), CROP), order)
    for step in (5, 2):
        before, again = batches[step], other(step)
        assert before.label_map is not None
        assert again.label_map is not None
        assert torch.equal(again.image, before.image)
        assert torch.equal(again.label_map, before.label_map)
        assert again.image.shape == (4, 3, 20, 28)
        assert again.label_map.shape == (4, 20, 28)
    other.close()
    seen_before = {int(index): image for index, image in zip(batches[0].index, batches[0].image, strict=True)}
    later = [(int(i), image) for batch in batches[3:] for i, image in zip(batch.index, batch.image, strict=True)]
    pairs = [(seen_before[index], image) for index, image in later if index in seen_before]
    assert pairs
    assert not any(torch.equal(before, after) for before, after in pairs), "another view in another epoch"


def test_a_file_that_goes_away_stops_the_batch(tmp_path: Path) -> None:
    made = scenes(tmp_path / "train", 3)
    found = opened(made)
    (made / "masks" / "01.png").unlink()
    loader = Loader(SegmentationViewSource(found, CROP), Sampler(3, 3, seed=0))
    with pytest.raises(DataError, match=r"cannot read .*01\.png; No such file"):
        loader(0)
    loader.close()
