"""Visual tokens on the disk: the format, what is refused, and what survives crashes, full disks and two writers."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smalti.core.compute import Compute
from smalti.core.config import to_json
from smalti.core.errors import DataError, OutputError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.load import Data
from smalti.data.token_cache import KEY, TokenCache, TokenKey, network_digest, token_key
from smalti.data.transforms.views import ColorJitter, RandomResizedCrop, TwoViews
from smalti.tokenizers.dvae import DVAE
from tests.small_runs import flat_pictures

NUM_IMAGES, NUM_PATCHES, VOCAB = 20, 3, 512
ROW = 2 * NUM_PATCHES + 8
"""Bytes of an image: its visual tokens, and their digest."""
VIEWS = TwoViews(RandomResizedCrop(), (16, 16), (8, 8))
KEYED = TokenKey(
    tokenizer="ab" * 32,
    vocab_size=VOCAB,
    num_patches=NUM_PATCHES,
    data="cd" * 32,
    num_images=NUM_IMAGES,
    memory="resident",
    channels=3,
    side=16,
    views=VIEWS,
    seed=0,
    device="cpu",
    dtype="float32",
    decoder=None,
)
OTHER: dict[str, Any] = {
    "tokenizer": "ef" * 32,
    "memory": "stream",
    "views": replace(VIEWS, size=(32, 32)),
    "side": None,
    "decoder": "Pillow 99",
    "device": "cuda",
    "dtype": "bfloat16",
    "mode": "compiled",
    "torch": "0.1",
    "numpy": "0.1",
    "data": "12" * 32,
}
"""Another value for each field that is no number."""


def all_ids(epoch: int = 0, vocab: int = VOCAB) -> NDArray[np.int64]:
    """Ids of every image: some of both ends of the vocabulary."""
    ids = np.random.default_rng(epoch).integers(vocab, size=(NUM_IMAGES, NUM_PATCHES))
    ids[0], ids[-1] = vocab - 1, 0
    return ids


def at(epoch: int, *index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Views of one epoch."""
    return np.full(len(index), epoch), np.array(index, np.int64)


ALL = at(0, *range(NUM_IMAGES))


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "cache", KEYED)


@pytest.fixture
def full(cache: TokenCache) -> TokenCache:
    cache.store(*ALL, all_ids())
    return cache


def test_what_is_stored_is_found_in_any_order_and_by_later_processes(cache: TokenCache) -> None:
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    cache.store(np.zeros_like(order), order, all_ids()[order])
    for again in (cache, TokenCache(cache.folder, KEYED)):
        index = np.array([3, 4, 5, 19, 0, 5, 7])
        ids, present = again.lookup(np.zeros_like(index), index)
        assert ids.dtype == np.int64
        assert present.all()
        np.testing.assert_array_equal(ids, all_ids()[index])


def test_nothing_is_there_at_first_and_neighbours_of_what_is_stored_are_not(cache: TokenCache) -> None:
    assert not cache.lookup(*ALL)[1].any()
    assert cache.missing(0).tolist() == list(range(NUM_IMAGES))
    cache.store(*at(0, 7, 8), all_ids()[[7, 8]])
    cache.store(*at(1, 2), all_ids(1)[[2]])
    assert np.flatnonzero(cache.lookup(*ALL)[1]).tolist() == [7, 8]
    assert cache.missing(0, block=3).tolist() == [*range(7), *range(9, NUM_IMAGES)]
    assert len(cache.missing(1)) == NUM_IMAGES - 1
    assert len(cache.missing(2)) == NUM_IMAGES


def test_a_batch_may_lie_in_many_epochs(cache: TokenCache) -> None:
    epochs, index = np.repeat(np.arange(12), NUM_IMAGES), np.tile(np.arange(NUM_IMAGES), 12)
    ids = np.concatenate([all_ids(epoch) for epoch in range(12)])
    mixed, before = np.random.default_rng(0).permutation(len(ids)), len(os.listdir("/dev/fd"))
    cache.store(epochs[mixed], index[mixed], ids[mixed])
    found, present = cache.lookup(epochs, index)
    assert len(os.listdir("/dev/fd")) <= before + 8
    assert present.all()
    np.testing.assert_array_equal(found, ids)
    cache.close()
    np.testing.assert_array_equal(cache.lookup(epochs, index)[0], ids)


def test_the_files_are_what_the_documentation_says(full: TokenCache) -> None:
    full.store(*at(12, 1), all_ids()[[1]])
    assert sorted(path.name for path in full.folder.iterdir()) == ["ids-00000.u16", "ids-00012.u16", KEY]
    raw = np.frombuffer((full.folder / "ids-00000.u16").read_bytes(), "<u2").reshape(NUM_IMAGES, NUM_PATCHES + 4)
    np.testing.assert_array_equal(raw[:, :NUM_PATCHES], all_ids() + 1)
    assert raw.all()
    assert json.loads((full.folder / KEY).read_text()) == json.loads(json.dumps(to_json(KEYED)))


def test_the_largest_vocabulary_fits(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path / "cache", replace(KEYED, vocab_size=65535))
    cache.store(*ALL, all_ids(vocab=65535))
    ids, present = cache.lookup(*ALL)
    assert present.all()
    assert ids.max() == 65534
    np.testing.assert_array_equal(ids, all_ids(vocab=65535))


def test_a_larger_vocabulary_does_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^a token cache holds at most 65535 visual tokens, not 65536$"):
        TokenCache(tmp_path / "cache", replace(KEYED, vocab_size=65536))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", [field.name for field in fields(TokenKey)])
def test_a_stale_key_is_refused_with_the_field_that_differs(cache: TokenCache, name: str) -> None:
    here = getattr(KEYED, name)
    changed = replace(KEYED, **{name: OTHER[name] if name in OTHER else here + 1})
    with pytest.raises(DataError) as caught:
        TokenCache(cache.folder, changed)
    assert caught.value.what == f"token cache {cache.folder} does not fit this run"
    assert caught.value.fix == "delete it, or give another folder"
    if name == "views":
        assert caught.value.cause == "views.size: there [16, 16], here [32, 32]"
    elif isinstance(here, str) and len(here) == 64:
        assert caught.value.cause == f"{name}: there {here[:12]}..., here {OTHER[name][:12]}..."
    else:
        assert caught.value.cause == f"{name}: there {here}, here {getattr(changed, name)}"
    assert TokenCache(cache.folder, KEYED).key == KEYED


def test_every_field_that_differs_is_named(cache: TokenCache) -> None:
    crop, jitter = RandomResizedCrop(scale=(0.5, 1.0)), ColorJitter(brightness=0.1)
    views = TwoViews(crop, (16, 16), None, replace(jitter, contrast=0.0, saturation=0.0))
    with pytest.raises(DataError) as caught:
        TokenCache(cache.folder, replace(KEYED, views=views, seed=7, torch="2.10.0"))
    assert caught.value.cause == (
        "views.crop.scale: there [0.08, 1.0], here [0.5, 1.0], views.token_size: there [8, 8], here None,"
        " views.jitter.brightness: there 0.0, here 0.1, seed: there 0, here 7,"
        f" torch: there {torch.__version__}, here 2.10.0"
    )


def test_a_field_of_another_version_is_named(cache: TokenCache) -> None:
    key = json.loads((cache.folder / KEY).read_text())
    del key["chunk"]
    (cache.folder / KEY).write_text(json.dumps(key | {"colour": "blue"}))
    with pytest.raises(DataError, match="run; chunk: there nothing, here 64, colour: there blue, here nothing; delete"):
        TokenCache(cache.folder, KEYED)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b'{"seed": 0,', r"it is not JSON: .*"),
        (b"[1]", "it is not an object"),
        (b'{"seed": ' + b"9" * 400 + b"}", "a number has 400 digits"),
        (b'{"seed": Infinity}', "Infinity is no finite number"),
        (b'{"seed": 0, "seed": 1}', "a key is there twice"),
        (b'{"seed": ' + b"[" * 100_000, "it is nested too deeply"),
        (b'{"seed": ' + b"[" * 60 + b"]" * 60 + b"}", "it is nested too deeply"),
    ],
    ids=range(7),
)
def test_a_damaged_key_is_refused(cache: TokenCache, content: bytes, cause: str) -> None:
    (cache.folder / KEY).write_bytes(content)
    with pytest.raises(DataError) as caught:
        TokenCache(cache.folder, KEYED)
    expected = rf"{re.escape(str(cache.folder / KEY))} is damaged; {cause}; delete the cache, or give another folder"
    assert re.fullmatch(expected, str(caught.value))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError) as caught:
        TokenCache(tmp_path, KEYED)
    cause = f"there is no {KEY}, but photo.jpg"
    assert str(caught.value) == f"{tmp_path} is no token cache; {cause}; give an empty folder"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_a_crash_at_the_very_beginning_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".{KEY}.0123").write_text("{")
    (tmp_path / "bad_files.jsonl").touch()
    assert TokenCache(tmp_path, KEYED).missing(0).size == NUM_IMAGES


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OutputError, match=r"cannot write into .*cache; "):
        TokenCache(tmp_path / "cache", KEYED)


def test_the_key_of_a_run(tmp_path: Path) -> None:
    """It is the same for the same things, and another one for every change that can change an id."""
    fp32, bf16 = (Compute(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))
    pixels = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.long)
    images, dvae = InMemoryDataset(pixels, labels), DVAE(16, 4, 3, 8)

    def key(**changed: Any) -> TokenKey:
        given: dict[str, Any] = {
            "source": images,
            "views": VIEWS,
            "seed": 0,
            "tokenizer": dvae.build(0),
            "compute": fp32,
        }
        return token_key(**given | changed)

    assert key() == key()
    assert (key().num_patches, key().num_images, key().side) == (4, 4, 16)
    assert key(views=replace(VIEWS, token_size=None)).num_patches == 16
    trained, brighter = dvae.build(0), pixels.clone()
    trained.to_logits.weight.data[0, 0] += 1e-6
    brighter[3, 2, 15, 15] ^= 1
    flat_pictures(tmp_path / "photos", 4)
    streamed = Data(str(tmp_path / "photos"), memory="stream", held_out=0.3).open(Log()).train
    changes: list[dict[str, Any]] = [
        {"source": InMemoryDataset(brighter, labels)},
        {"source": images.select(np.array([1, 0, 2, 3]))},
        {"source": streamed},
        {"views": replace(VIEWS, crop=RandomResizedCrop(flip=0.0))},
        {"seed": 1},
        {"tokenizer": trained},
        {"tokenizer": DVAE(16, 4, 3, 8, depth=0).build(0)},
        {"compute": bf16},
    ]
    keys = [key(), *(key(**change) for change in changes)]
    assert len({json.dumps(to_json(one)) for one in keys}) == len(keys)
    assert keys[3].decoder is not None
    assert keys[3].side is None
    assert network_digest(trained) != network_digest(dvae.build(0)) == network_digest(dvae.build(0))


def test_a_torn_row_counts_as_missing(full: TokenCache) -> None:
    with open(full.path(0), "r+b") as file:
        file.seek(4 * ROW + 2)
        file.write(b"\0" * 4)  # the end of row 4, as if its page had not reached the disk
    ids, present = TokenCache(full.folder, KEYED).lookup(*ALL)
    assert np.flatnonzero(~present).tolist() == [4]
    np.testing.assert_array_equal(ids[present], all_ids()[present])


def test_of_a_file_cut_short_the_whole_rows_count(full: TokenCache) -> None:
    for size in reversed(range(NUM_IMAGES * ROW)):
        os.truncate(full.path(0), size)
        ids, present = full.lookup(*ALL)
        assert present.sum() == size // ROW
        np.testing.assert_array_equal(ids[present], all_ids()[present])
    full.store(*ALL, all_ids())
    assert full.missing(0).size == 0


def test_a_file_that_is_too_long_is_refused(full: TokenCache) -> None:
    with open(full.path(0), "ab") as file:
        file.write(b"\1")
    with pytest.raises(DataError) as caught:
        TokenCache(full.folder, KEYED).lookup(*ALL)
    cause = "it has 281 bytes, and at most 280 are right"
    assert str(caught.value) == f"{full.path(0)} is damaged; {cause}; delete the cache, or give another folder"


def test_an_id_beyond_the_vocabulary_is_refused(full: TokenCache) -> None:
    with open(full.path(0), "r+b") as file:
        file.write((VOCAB + 1).to_bytes(2, "little"))
    with pytest.raises(DataError, match=r"ids-00000.u16 is damaged; it holds visual tokens beyond the 512 that there"):
        full.lookup(*at(0, 0))
    assert full.lookup(*at(0, 1))[1].all()


def test_a_file_that_cannot_be_read_is_named(cache: TokenCache) -> None:
    cache.path(0).mkdir()
    with pytest.raises(DataError, match=r"^cannot read .*ids-00000.u16; what is there is no ordinary file$"):
        cache.lookup(*ALL)
    with pytest.raises(OutputError, match=r"^cannot write .*ids-00000.u16; what is there is no ordinary file$"):
        cache.store(*ALL, all_ids())


def make_link(path: Path) -> None:
    (path.parent.parent / "other").write_bytes(b"mine")
    path.symlink_to(path.parent.parent / "other")


@pytest.mark.parametrize(
    ("make", "cause"),
    [(make_link, "it is a link, and none is followed here"), (os.mkfifo, "what is there is no ordinary file")],
)
@pytest.mark.parametrize("name", ["ids-00000.u16", KEY])
def test_links_and_pipes_are_neither_read_nor_written(
    cache: TokenCache, make: Callable[[Path], None], cause: str, name: str
) -> None:
    (cache.folder / name).unlink(missing_ok=True)
    make(cache.folder / name)
    with pytest.raises(DataError, match=rf"^cannot read .*{name}; {cause}"):
        TokenCache(cache.folder, KEYED).lookup(*ALL)
    if name != KEY:
        with pytest.raises(OutputError, match=rf"^cannot write .*{name}; {cause}"):
            cache.store(*ALL, all_ids())
    if (other := cache.folder.parent / "other").exists():
        assert other.read_bytes() == b"mine"


def test_every_flipped_bit_is_noticed(full: TokenCache) -> None:
    """Or makes its row one that is missing: a number that becomes 0."""
    content = full.path(0).read_bytes()
    causes = set()
    for bit in range(8 * ROW):
        changed = bytearray(content)
        changed[3 * ROW + bit // 8] ^= 1 << bit % 8
        full.path(0).write_bytes(changed)
        try:
            ids, present = full.lookup(*ALL)
        except DataError as error:
            causes.add(error.cause)
        else:
            assert np.flatnonzero(~present).tolist() == [3]
            np.testing.assert_array_equal(ids[present], all_ids()[present])
    beyond = "it holds visual tokens beyond the 512 that there are"
    assert causes == {beyond, "the visual tokens of image 3 differ from their digest"}


def test_rows_in_the_place_of_others_are_noticed(full: TokenCache, tmp_path: Path) -> None:
    """Of another image, of another epoch, of a cache with another key."""
    content = full.path(0).read_bytes()
    rows = [content[start : start + ROW] for start in range(0, len(content), ROW)]
    full.path(0).write_bytes(b"".join(reversed(rows)))
    with pytest.raises(
        DataError, match=r"ids-00000.u16 is damaged; the visual tokens of image 0 differ from their dig"
    ):
        full.lookup(*ALL)
    full.path(1).write_bytes(content)
    with pytest.raises(
        DataError, match=r"ids-00001.u16 is damaged; the visual tokens of image 7 differ from their dig"
    ):
        full.lookup(*at(1, 7))
    other = TokenCache(tmp_path / "other", replace(KEYED, seed=1))
    other.path(0).write_bytes(content)
    with pytest.raises(DataError, match=r"the visual tokens of image 19 differ from their digest; delete the cache"):
        other.lookup(*at(0, 19))


def test_a_full_disk_is_an_error_of_output_and_loses_nothing(
    cache: TokenCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(*at(0, 0, 1), all_ids()[:2])
    room, write = [ROW + 3], os.pwrite

    def limited(descriptor: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[: room[0]], offset)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", limited)
    with pytest.raises(OutputError, match=r"^cannot write .*ids-00000.u16; No space left on device$"):
        cache.store(*at(0, 4, 5, 6), all_ids()[4:7])
    ids, present = cache.lookup(*ALL)
    assert np.flatnonzero(present).tolist() == [0, 1, 4]  # row 5 was written in part
    np.testing.assert_array_equal(ids[present], all_ids()[present])


def test_a_system_that_writes_little_at_a_time(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:5], offset))
    cache.store(*ALL, all_ids())
    np.testing.assert_array_equal(cache.lookup(*ALL)[0], all_ids())


def test_a_folder_that_is_deleted_meanwhile(full: TokenCache) -> None:
    full.close()
    shutil.rmtree(full.folder)
    assert not full.lookup(*ALL)[1].any()
    with pytest.raises(OutputError, match="No such file or directory"):
        full.store(*ALL, all_ids())


def test_of_two_runs_that_begin_a_cache_at_once_one_is_refused(tmp_path: Path) -> None:
    keys = [KEYED, replace(KEYED, seed=1)]
    for attempt in range(20):
        folder, start = tmp_path / str(attempt), threading.Barrier(2)
        outcomes: list[str] = []

        def begin(key: TokenKey, folder: Path = folder, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                TokenCache(folder, key)
                outcomes.append("ok")  # noqa: B023
            except DataError as error:
                outcomes.append(error.cause.split(":")[0])  # noqa: B023

        threads = [threading.Thread(target=begin, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["ok", "seed"]


_FILL = """
import json, sys
from pathlib import Path
import numpy as np
from smalti.core.config import from_json
from smalti.data.token_cache import TokenCache
from smalti.data.token_cache import TokenKey

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
cache = TokenCache(folder, from_json(TokenKey, json.loads((folder / "key.json").read_text())))
print("ready", flush=True)
sys.stdin.readline()
for index in np.split(np.random.default_rng(seed).permutation(cache.key.num_images), 100):
    ids = np.stack([index % 512, index % 7, index % 11], 1)
    found, present = cache.lookup(np.zeros_like(index), index)
    assert (found[present] == ids[present]).all()
    cache.store(np.zeros_like(index), index, ids)
"""


def test_two_processes_fill_a_cache_at_once(tmp_path: Path) -> None:
    cache, index = TokenCache(tmp_path, replace(KEYED, num_images=20000)), np.arange(20000)
    commands = [[sys.executable, "-c", _FILL, str(tmp_path), seed] for seed in "12"]
    processes = [subprocess.Popen(each, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for each in commands]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    ids, present = cache.lookup(np.zeros_like(index), index)
    assert present.all()
    np.testing.assert_array_equal(ids, np.stack([index % 512, index % 7, index % 11], 1))
