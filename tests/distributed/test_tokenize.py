"""`smalti tokenize` in several processes fills the cache that one fills.

A test takes 5 to 10 seconds: four processes render and tokenize.
"""

from pathlib import Path

import pytest

from tests.distributed.started import started
from tests.small_runs import PRETRAIN_FLAGS, pictures, train_tokenizer

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, one of which is damaged, and `tokenizer`."""
    folder = tmp_path_factory.mktemp("tokenize")
    photos = pictures(folder / "photos", 35)
    assert train_tokenizer(photos, folder / "tokenizer", 2) == 0
    (photos / "across/04.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_ranks_fill_the_cache_of_one(memory: str, folder: Path, tmp_path: Path) -> None:
    flags = ["--data.memory", memory, "--data.num-workers", "0", "--num-views", "2", "--data.max-bad-fraction", "0.1"]
    for world in (1, 3):
        out = ["--tokenizer", str(folder / "tokenizer"), "--out", str(tmp_path / str(world))]
        command = ["tokenize", str(folder / "photos"), *PRETRAIN_FLAGS, *flags, *out]
        with started(tmp_path, [command] * world) as ranks:
            assert ranks.all_codes() == [0] * world, "".join(map(ranks.text, range(world)))
            assert ranks.unwanted() == ""
            assert "2 views of " in ranks.text(0)
    one, many = ({p.name: p.read_bytes() for p in (tmp_path / world).iterdir()} for world in ("1", "3"))
    assert one.keys() == many.keys()
    assert all(one[name] == many[name] for name in one if name.endswith(".u16"))
    assert one["key.json"] == many["key.json"]


def test_more_ranks_than_images(folder: Path, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", 1)
    out = ["--tokenizer", str(folder / "tokenizer"), "--out", str(tmp_path / "cache")]
    with started(tmp_path, [["tokenize", str(photos), *PRETRAIN_FLAGS, *out]] * 2) as ranks:
        assert ranks.all_codes() == [0, 0], "".join(map(ranks.text, range(2)))
        assert "1 view of 1 images, 1 computed" in ranks.text(0)
