"""Images decoded while they are shown: the same batches for any number of workers and ranks, from any step on."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.core.contracts import Batch
from smalti.core.errors import DataError
from smalti.core.log import Log
from smalti.data.bad_files import BadFiles
from smalti.data.datasets.dataset import Subset
from smalti.data.datasets.folder import Folder
from smalti.data.load import Data, RunImages, TrainingData
from smalti.data.loader import Loader, Sampler, default_workers, open_view_source
from smalti.data.transforms.augment import channel_means, colour_matrix, recolour
from smalti.data.transforms.views import NO_JITTER, ColorJitter, RandomResizedCrop, TwoViews
from smalti.data.workers.jobs import Bad, candidates
from smalti.functional.masking import Random
from tests.small_runs import pictures

CPU = torch.device("cpu")
VIEWS = TwoViews(RandomResizedCrop(), (16, 16), (8, 8), ColorJitter())


def streamed(folder: Path, workers: int = 0, *, bad_files: Path | None = None, bad_share: float = 0.5) -> RunImages:
    data = Data(str(folder), side=16, memory="stream", num_workers=workers, max_bad_fraction=bad_share)
    images = data.open(Log(), bad_files)
    assert images.bad_files is not None
    return images


def loader(images: RunImages, workers: int = 0, batch_size: int = 8, part: tuple[int, int] = (0, 1)) -> Loader:
    data = Data("photos", side=16, num_workers=workers)
    view_source = open_view_source(images, VIEWS, data, batch_size // part[1], CPU)
    return Loader(view_source, Sampler(len(images.train), batch_size, 3, part), Random(), (4, 4))


def same(one: Batch, other: Batch) -> bool:
    """Whether both have the same fields, and these are equal, bit by bit."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    there = [(a, b) for a, b in pairs if a is not None or b is not None]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in there)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("stream") / "photos", 12)


@pytest.fixture(scope="module")
def expected(photos: Path) -> list[Batch]:
    batches = loader(streamed(photos))
    return [batches(step) for step in range(8)]


def test_shapes_types_and_labels(expected: list[Batch], photos: Path) -> None:
    batch, images = expected[0], streamed(photos)
    assert batch.image.shape == (8, 3, 16, 16)
    assert batch.token_image is not None
    assert batch.token_image.shape == (8, 3, 8, 8)
    assert batch.image.dtype == torch.float32
    assert batch.label is not None
    assert batch.label.tolist() == images.train.labels_at(batch.index.numpy()).tolist()
    assert len({tuple(label.tolist()) for label in (b.label for b in expected) if label is not None}) > 1


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(photos: Path, expected: list[Batch], workers: int) -> None:
    batches = loader(streamed(photos), workers)
    try:
        assert all(same(batches(step), batch) for step, batch in enumerate(expected))
        assert same(batches(2), expected[2]), "also back again"
    finally:
        batches.close()


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_restart_at_any_step_gives_the_same_batches(photos: Path, expected: list[Batch], start: int) -> None:
    batches = loader(streamed(photos))
    assert all(same(batches(step), expected[step]) for step in range(start, 8))


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_see_the_same_global_batch(photos: Path, expected: list[Batch], world: int) -> None:
    ranks = [loader(streamed(photos), part=(rank, world)) for rank in range(world)]
    for step in (0, 2, 5):
        parts = [rank(step) for rank in ranks]
        for name in ("image", "token_image", "index", "key", "mask", "label"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(expected[step], name))


def test_without_jitter_pixels_stay_8_bits_and_mirrors_are_mirrors(photos: Path) -> None:
    images = streamed(photos)
    shown = {}
    for flip in (0.0, 1.0):
        views = TwoViews(RandomResizedCrop(flip=flip), (16, 16))
        view_source = open_view_source(images, views, Data("photos", num_workers=0), 8, CPU)
        shown[flip] = Loader(view_source, Sampler(len(images.train), 8, 3))(1)
    assert shown[0.0].image.dtype == torch.uint8
    assert shown[0.0].token_image is None
    assert torch.equal(shown[1.0].image, shown[0.0].image.flip(-1))


def test_both_views_have_the_same_colours_and_are_mirrored_alike(photos: Path, expected: list[Batch]) -> None:
    """The tokenizer sees the jitter too; contrast turns around the mean of its view, the smaller one."""
    images = streamed(photos)
    order = Sampler(len(images.train), 8, 3)
    source = open_view_source(images, replace(VIEWS, jitter=NO_JITTER), Data("photos", num_workers=0), 8, CPU)
    plain, rows = Loader(source, order)(1), order(1)
    assert plain.token_image is not None
    assert expected[1].token_image is not None
    change = colour_matrix(torch.from_numpy(VIEWS.jitter(rows.view_keys)).float(), channel_means(plain.token_image))
    for shown, before in ((expected[1].image, plain.image), (expected[1].token_image, plain.token_image)):
        torch.testing.assert_close(shown, recolour(before, *change), rtol=0, atol=1e-5)
        assert float((shown - before.float() / 255).abs().mean()) > 0.02


def test_a_batch_is_no_view_of_memory_that_is_used_again(photos: Path) -> None:
    images = streamed(photos)
    grey = TwoViews(RandomResizedCrop(flip=0.0), (16, 16))
    batches = Loader(
        open_view_source(images, grey, Data("photos", num_workers=0), 8, CPU), Sampler(len(images.train), 8, 3)
    )
    first = batches(0)
    kept = first.image.clone()
    batches(1)
    assert torch.equal(first.image, kept)


def test_memory_decides_between_resident_and_streamed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Data(str(photos), side=16).open(Log()).bad_files is None
    monkeypatch.setattr("smalti.data.load.usable_memory", lambda: 4 * 24 * 3 * 16 * 16 - 1)
    assert Data(str(photos), side=16).open(Log()).bad_files is not None
    assert Data(str(photos), side=16, limit=20).open(Log()).bad_files is None
    assert Data(str(photos), side=16, memory="resident").open(Log()).bad_files is None
    assert Data("embedded", channels=1, memory="stream").open(Log()).bad_files is None, "they are in memory anyway"


def test_no_image_is_both_learnt_from_and_held_out(photos: Path) -> None:
    images = streamed(photos)
    whole = Folder(photos, 3)
    learnt = [images.train.key(place) for place in range(len(images.train))]
    assert len(images.held_out) + len(learnt) == len(whole) == 24
    resident = Data(str(photos), side=16).load(Log())
    assert len(resident.held_out) == len(images.held_out)
    assert torch.equal(resident.held_out.images, images.held_out.images)


def damaged(photos: Path, tmp_path: Path, *places: int) -> tuple[RunImages, Path]:
    """The same pictures; those at some places of the training part are no images."""
    copy = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(path, copy / path.relative_to(photos))
    listing = tmp_path / "bad_files.jsonl"
    images = streamed(copy, bad_files=listing)
    for place in places:
        path = Path(images.train.name(place))
        path.unlink()
        path.write_text("text")
    return images, listing


def test_g29_a_bad_file_is_logged_once_and_always_replaced_by_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, listing = damaged(photos, tmp_path, 5)
    batches = loader(images)
    before = [batches(step) for step in range(12)]
    (line,) = [json.loads(line) for line in listing.read_text().splitlines()]
    assert (line["path"], line["index"], line["quarantined"]) == (images.train.name(5), 5, False)
    assert line["reason"].startswith("not an image in a format smalti knows")
    assert capsys.readouterr().err.count("bad image, another one is shown instead: ") == 1

    again = TrainingData(images.train, images.held_out, BadFiles(23, images.train.name, Log(), listing))
    resumed = loader(again)
    assert all(same(resumed(step), before[step]) for step in range(4, 12)), "exact on resume"
    assert len(listing.read_text().splitlines()) == 1
    assert capsys.readouterr().err == ""


def test_g29_the_replacement_is_the_next_candidate_under_the_keys_of_the_bad_one(photos: Path, tmp_path: Path) -> None:
    images, _ = damaged(photos, tmp_path, 5)
    whole = streamed(photos)
    stand_in = next(place for place in candidates(5, len(images.train)) if place != 5)
    rows = Sampler(len(images.train), 2, 3).rows(np.array([5, 7]), np.array([0, 0]))
    shown, plain = loader(images, batch_size=2).at(rows), loader(whole, batch_size=2).at(rows)
    assert shown.index.tolist() == [stand_in, 7]
    assert torch.equal(shown.image[1], plain.image[1])
    assert not torch.equal(shown.image[0], plain.image[0])
    assert shown.label is not None
    assert int(shown.label[0]) == images.train.label(stand_in)


def test_g26_nothing_but_bad_files_stops_at_once(tmp_path: Path, photos: Path) -> None:
    images, _ = damaged(photos, tmp_path, *range(22))
    with pytest.raises(DataError, match=r"images in a row can be read|images cannot be read"):
        loader(images)(0)


def test_g27_too_many_bad_files_stop_with_their_reasons(photos: Path, tmp_path: Path) -> None:
    images, _ = damaged(photos, tmp_path, 1, 2, 3)
    few = TrainingData(images.train, images.held_out, BadFiles(23, images.train.name, Log(), max_fraction=0.1))
    batches = loader(few)
    message = r"3 of 23 images cannot be read, \d+ were shown; .*png: not an image.*raise --data\.max-bad-fraction"
    with pytest.raises(DataError, match=message):
        [batches(step) for step in range(4)]


def test_a_strict_run_stops_at_the_first_bad_file(photos: Path, tmp_path: Path) -> None:
    images, _ = damaged(photos, tmp_path, 1)
    strict = BadFiles(23, images.train.name, Log(), on_bad_image="error")
    batches = loader(TrainingData(images.train, images.held_out, strict))
    with pytest.raises(DataError, match=r"cannot read .*png; not an image .*use --data\.on-bad-image replace"):
        [batches(step) for step in range(4)]


def test_a_large_data_set_of_mostly_bad_files_stops_early(tmp_path: Path) -> None:
    """G26: one in a hundred of a million is ten thousand, too many to wait for."""
    bad = BadFiles(1_000_000, str, Log(), tmp_path / "bad_files.jsonl")
    bad.add([Bad(place, "damaged", quarantined=False) for place in range(50)], seen=60)
    with pytest.raises(DataError, match="90 of 1000000 images cannot be read, 120 were shown"):
        bad.add([Bad(place, "damaged", quarantined=False) for place in range(50, 90)], seen=60)
    calm = BadFiles(1_000_000, str, Log())
    for _ in range(100):
        calm.add([], seen=60)
    calm.add([Bad(place, "damaged", quarantined=False) for place in range(60)], seen=60)
    assert len(calm.reasons) == 60


def test_what_hung_or_killed_a_worker_is_not_opened_again_after_a_resume(photos: Path, tmp_path: Path) -> None:
    """F02 and F03, over a restart."""
    listing = tmp_path / "bad_files.jsonl"
    first = BadFiles(23, str, Log(), listing)
    first.add([Bad(4, "killed its reader (signal 11)", quarantined=True)], seen=8)
    with open(listing, "a") as file:
        file.write('{"path": "cut o')
    images = streamed(photos, bad_files=listing)
    assert images.bad_files is not None
    assert images.bad_files.quarantined == {4}
    batches = loader(images)
    rows = Sampler(len(images.train), 2, 3).rows(np.array([4, 7]), np.array([0, 0]))
    assert batches.at(rows).label is not None
    stand_in = next(place for place in candidates(4, len(images.train)) if place != 4)
    assert int(batches.at(rows).label[0]) == images.train.label(stand_in)  # type: ignore[index]


def test_names_that_are_no_text_come_back_from_the_list(tmp_path: Path) -> None:
    """H06."""
    listing = tmp_path / "bad_files.jsonl"
    BadFiles(5, lambda _: "a\udcff\n.png", Log(), listing).add([Bad(2, "empty", quarantined=False)], seen=1)
    assert json.loads(listing.read_text())["path"] == "a\udcff\n.png"
    assert BadFiles(5, str, Log(), listing).reasons == {2: "empty"}


def test_h13_the_fingerprint_is_of_names_lengths_and_labels_not_of_the_order_of_creation(tmp_path: Path) -> None:
    for folder, names in (("a", "xyz"), ("b", "zyx")):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("RGB", (4 + ord(name) % 3, 4)).save(tmp_path / folder / name / "1.png")
    one, other = Folder(tmp_path / "a", 3), Folder(tmp_path / "b", 3)
    assert one.fingerprint() == other.fingerprint()
    assert Subset(one, np.array([0, 1])).fingerprint() != one.fingerprint()
    (tmp_path / "b" / "x" / "1.png").write_bytes(b"longer than before")
    assert one.fingerprint() != Folder(tmp_path / "b", 3).fingerprint()


def test_workers_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("smalti.data.loader.usable_processors", lambda: 16)
    assert default_workers(CPU) == 4
    assert default_workers(torch.device("cuda")) == 15
    monkeypatch.setattr("smalti.data.loader.usable_processors", lambda: 64)
    assert default_workers(torch.device("cuda")) == 16
    monkeypatch.setattr("smalti.data.loader.local_world_size", lambda: 4)
    assert default_workers(torch.device("cuda")) == 15, "a quarter of them each"
    monkeypatch.setattr("smalti.data.loader.usable_processors", lambda: 16)
    assert default_workers(torch.device("cuda")) == 15, "each is bound to its quarter already"
    monkeypatch.setattr("smalti.data.loader.usable_processors", lambda: 1)
    assert default_workers(CPU) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat_over_twenty_thousand_batches(photos: Path) -> None:
    """This process and its worker, in KiB, after a tenth of the batches and at the end."""
    images = streamed(photos)
    view_source = open_view_source(images, VIEWS, Data("photos", side=16, num_workers=1), 4, CPU)
    batches = Loader(view_source, Sampler(len(images.train), 4, 3), Random(), (4, 4))
    worker = view_source.renderer.pids[0]  # type: ignore[attr-defined]
    held = []
    for step in range(20_000):
        batches(step)
        if step in (2_000, 19_999):
            held.append([resident(os.getpid()), resident(worker)])
    batches.close()
    growth = [after - before for before, after in zip(*held, strict=True)]
    assert max(growth) < 4 * 1024, f"{held}"


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
