"""What `smalti prepare` writes is a WebDataset: read by the standard library, GNU tar, webdataset and datasets."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.core.errors import DataError
from smalti.data.datasets.open import open_source
from smalti.data.datasets.prepared import Prepared
from smalti.data.decode import decode_bytes
from smalti.runs.prepare import Prepare, main
from tests.data.prepared import fill

NEEDED = "the peer is not installed: pip install 'smalti[peers]'"


@pytest.fixture(params=["jpeg", "raw"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Twelve pictures of two classes."""
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    root = fill(tmp_path / "photos" / "cats", 6).parent
    fill(root / "dogs", 6, first=6)
    out = tmp_path / "shards"
    main(Prepare(str(root), str(out), side=18, encoding=request.param, quality=40))
    return Prepared(out, 3)


def suffix(made: Prepared) -> str:
    return "jpg" if made.about.settings.encoding == "jpeg" else "npy"


def test_it_is_an_archive_to_others(made: Prepared, tmp_path: Path) -> None:
    path = made.folder / "shard-00000.tar"
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert [member.name for member in members[:4]] == [
        f"{number:09d}.{kind}" for number in (0, 1) for kind in (suffix(made), "cls")
    ]
    assert {(member.mode, member.mtime, member.uid, member.gid) for member in members} == {(0o644, 0, 0, 0)}
    assert contents[::2] == [made.read(index) for index in range(12)]
    assert [int(text) for text in contents[1::2]] == [made.label(index) for index in range(12)] == [0] * 6 + [1] * 6
    listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=False)
    assert listed.stderr == ""
    assert listed.stdout.splitlines() == [member.name for member in members]


def test_our_reader_of_foreign_shards_reads_them_without_the_index(made: Prepared) -> None:
    pattern = f"{made.folder}/shard-{{00000..00000}}.tar"
    source = open_source(pattern, 3)
    assert source.classes == ("0", "1")
    for index in range(12):
        assert np.array_equal(source[index].image, made[index].image)
        assert source[index].label == made[index].label


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_webdataset_reads_it(made: Prepared) -> None:
    wds = pytest.importorskip("webdataset", reason=NEEDED)
    samples = list(wds.WebDataset(str(made.folder / "shard-00000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(12)]
    for index, sample in enumerate(samples):
        assert sample["cls"] == made.label(index)
        pixels, ours = sample[suffix(made)], made[index].image
        assert pixels.shape == ours.shape
        assert np.abs(pixels.astype(int) - ours).max() <= (0 if suffix(made) == "npy" else 3)


def test_datasets_reads_it(made: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason=NEEDED)
    files = {"train": str(made.folder / "shard-*.tar")}
    rows = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert len(rows) == 12
    for index, row in enumerate(rows):
        assert row["__key__"] == f"{index:09d}"
        assert int(row["cls"]) == made.label(index)
        found = row[suffix(made)]
        pixels = np.asarray(found.convert("RGB") if isinstance(found, Image.Image) else found, np.uint8)
        assert np.abs(pixels.astype(int) - made[index].image).max() <= (0 if suffix(made) == "npy" else 3)


def test_a_pack_of_an_earlier_version_is_refused_with_the_command_that_makes_shards(tmp_path: Path) -> None:
    folder = tmp_path / "my pack"
    folder.mkdir()
    settings = {"data": "/photos", "source": "folder", "side": 128, "encoding": "jpeg", "quality": 90, "channels": 3}
    settings |= {"limit": None, "length": 2, "fingerprint": ""}
    (folder / "pack.json").write_text(json.dumps({"smalti_pack": 1, "settings": settings}))
    command = f"smalti prepare /photos --out '{folder}-shards' --side 128 --encoding jpeg --channels 3 --quality 90"
    with pytest.raises(DataError) as refused:
        open_source(str(folder), 3)
    assert str(refused.value) == (
        f"{folder} is a pack; an earlier smalti has written it, and this one reads and writes tar shards; "
        f"prepare the images again: {command}"
    )
    with pytest.raises(DataError, match="is a pack; an earlier smalti has written it"):
        main(Prepare(str(fill(tmp_path / "photos", 2)), str(folder)))
    (folder / "pack.json").write_text("{")
    with pytest.raises(DataError, match="prepare the images again: smalti prepare DATA --out "):
        open_source(str(folder), 3)


def test_what_is_kept_is_the_file_itself(tmp_path: Path) -> None:
    """A JPEG that is small enough is in the shard as it was."""
    file = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(file, "jpeg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.v2.jpg").write_bytes(file.getvalue())
    main(Prepare(str(tmp_path / "photos"), str(tmp_path / "shards")))
    made = Prepared(tmp_path / "shards", 3)
    assert (made.key(0), made.read(0)) == ("a.v2.jpg", file.getvalue())
    with tarfile.open(tmp_path / "shards" / "shard-00000.tar") as archive:
        assert archive.getnames() == ["000000000.jpg"], "no class, no .cls"
    assert decode_bytes(made.read(0), "", 3).shape == (40, 50, 3)
