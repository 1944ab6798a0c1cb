"""One image to its views: against Pillow, at any scale of decoding, with colours changed before the crop."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from smalti.core.errors import DataError
from smalti.core.rng import fold
from smalti.data.datasets.folder import Folder
from smalti.data.decode import decode_scaled
from smalti.data.transforms import augment
from smalti.data.transforms.augment import Render, channel_means, colour_matrix, recolour
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews, WholeImage

KEYS = [int(key) for key in fold(3, np.arange(12))]


def photo(height: int = 90, width: int = 130, seed: int = 0) -> Image.Image:
    """A smooth picture with some detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) * 0.9 + rng.integers(0, 20, (height, width, 3))).astype(np.uint8))


def folder(path: Path, *pictures: Image.Image, suffix: str = "png", channels: int = 3, **options: Any) -> Folder:
    path.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(path / f"{number}.{suffix}", **options)
    return Folder(path, channels)


def rendered(source: Folder, views: TwoViews, key: int, position: int = 0) -> list[NDArray[np.uint8]]:
    job = Render(source, views)
    out = [np.zeros(shape, np.uint8) for shape in job.shapes]
    job(position, key, out)
    return out


def in_pillow(picture: Image.Image, views: TwoViews, key: int) -> list[NDArray[np.uint8]]:
    """The released code's way: crop in whole pixels, then two resizes."""
    width, height = picture.size
    assert isinstance(views.crop, RandomResizedCrop)
    top, left, tall, wide = views.crop.one(key, height, width)
    h, w = max(round(tall * height), 1), max(round(wide * width), 1)
    y, x = min(round(top * height), height - h), min(round(left * width), width - w)
    part = picture.crop((x, y, x + w, y + h))
    assert views.token_size is not None
    sizes = ((views.size, Image.Resampling.BICUBIC), (views.token_size, Image.Resampling.LANCZOS))
    return [np.asarray(part.resize(size[::-1], filter)).transpose(2, 0, 1) for size, filter in sizes]


@pytest.mark.parametrize("key", KEYS)
def test_both_views_are_pillows(tmp_path: Path, key: int) -> None:
    views = TwoViews(RandomResizedCrop(), (48, 40), (24, 20))
    for ours, theirs in zip(
        rendered(folder(tmp_path / "a", photo()), views, key), in_pillow(photo(), views, key), strict=True
    ):
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.max() <= 2
        assert difference.mean() < 0.3


def test_without_lanczos_in_torch_pillow_makes_the_token_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(augment._TORCH_HAS, "lanczos", False)
    monkeypatch.setitem(augment._TORCH_HAS, "bicubic", False)
    views = TwoViews(RandomResizedCrop(), (48, 40), (24, 20))
    ours, theirs = rendered(folder(tmp_path / "a", photo()), views, KEYS[0]), in_pillow(photo(), views, KEYS[0])
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    grey = rendered(folder(tmp_path / "b", photo(), channels=1), views, KEYS[0])
    assert [view.shape for view in grey] == [(1, 48, 40), (1, 24, 20)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_jpeg_is_decoded_at_a_fraction_and_shows_the_same(tmp_path: Path, channels: int) -> None:
    large = folder(tmp_path / "a", photo(900, 1300), suffix="jpg", channels=channels, quality=95)
    data = large.read(0)
    views = TwoViews(WholeImage(), (40, 56))
    assert decode_scaled(data, "a", channels, lambda height, width: 2 * 40 / height).shape == (113, 163, channels)
    assert decode_scaled(data, "a", channels, lambda height, width: 1.0).shape == (900, 1300, channels)
    (ours,) = rendered(large, views, 0)
    whole = (
        Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB").resize((56, 40), Image.Resampling.BICUBIC)
    )
    difference = np.abs(ours.astype(int) - np.asarray(whole).reshape(40, 56, -1).transpose(2, 0, 1).astype(int))
    assert difference.mean() < 2
    assert difference.max() < 16


def test_decoded_in_full_a_large_jpeg_is_cropped_as_the_released_code_does(tmp_path: Path) -> None:
    """Also where the view is a tenth of the image: no pixel is dropped before the resize."""
    large = folder(tmp_path / "a", photo(900, 1300), suffix="jpg", quality=90)
    picture = Image.open(io.BytesIO(large.read(0))).convert("RGB")
    views = TwoViews(RandomResizedCrop(scale=(0.5, 1.0)), (48, 40), (24, 20), full_decode=True)
    at_a_fraction = replace(views, full_decode=False)
    for key in KEYS[:4]:
        for ours, theirs in zip(rendered(large, views, key), in_pillow(picture, views, key), strict=True):
            difference = np.abs(ours.astype(int) - theirs.astype(int))
            assert difference.max() <= 2
            assert difference.mean() < 0.3
        assert not np.array_equal(rendered(large, at_a_fraction, key)[0], rendered(large, views, key)[0])


def test_a_turned_photograph_is_cropped_the_right_way_up(tmp_path: Path) -> None:
    """EXIF orientation 6: the camera was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = photo(400, 300)
    turned = folder(
        tmp_path / "a", upright.rotate(90, expand=True), suffix="jpg", quality=95, subsampling=0, exif=exif.tobytes()
    )
    plain = folder(tmp_path / "b", upright, suffix="jpg", quality=95, subsampling=0)
    views = TwoViews(RandomResizedCrop(), (32, 32))
    for key in KEYS[:6]:
        difference = np.abs(rendered(turned, views, key)[0].astype(int) - rendered(plain, views, key)[0].astype(int))
        assert difference.mean() < 6, "the wrong way up it is 40"


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    """G18."""
    source = folder(tmp_path / "a", Image.new("RGB", (1, 1), (10, 20, 30)))
    (view,) = rendered(source, TwoViews(RandomResizedCrop(), (8, 8)), KEYS[0])
    assert (view == np.array([10, 20, 30])[:, None, None]).all()


def test_a_crop_depends_on_its_key_alone(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", photo(), photo(seed=1))
    views = TwoViews(RandomResizedCrop(), (16, 16), (8, 8))
    first = rendered(source, views, KEYS[0])
    rendered(source, views, KEYS[1], position=1)
    assert all(np.array_equal(one, other) for one, other in zip(first, rendered(source, views, KEYS[0]), strict=True))
    assert not np.array_equal(first[0], rendered(source, views, KEYS[1])[0])


def test_colours_may_be_changed_before_the_crop(tmp_path: Path) -> None:
    """The order of the released code: contrast turns around the mean of the whole image, values are clamped before."""
    source = folder(tmp_path / "a", photo())
    early = TwoViews(RandomResizedCrop(), (32, 32), None, ColorJitter(before_crop=True))
    (ours,) = rendered(source, early, KEYS[2])
    pixels = torch.from_numpy(np.array(photo())).permute(2, 0, 1)[None]
    factors = torch.from_numpy(early.jitter(np.array([KEYS[2]], np.uint64))).float()
    unmirrored = torch.tensor([False])
    changed = recolour(pixels, *colour_matrix(factors, channel_means(pixels)), unmirrored).mul(255).round().byte()
    plain = folder(tmp_path / "b", Image.fromarray(changed[0].permute(1, 2, 0).numpy()))
    (theirs,) = rendered(plain, TwoViews(RandomResizedCrop(), (32, 32), None, NO_JITTER), KEYS[2])
    assert np.array_equal(ours, theirs)


def test_what_is_no_image_is_a_data_error(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", photo())
    (tmp_path / "a" / "0.png").write_text("<!DOCTYPE html>")
    with pytest.raises(
        DataError, match=r"cannot read .*0\.png; not an image in a format smalti knows \(it looks like HTML\)"
    ):
        rendered(source, TwoViews(WholeImage(), (8, 8)), 0)
