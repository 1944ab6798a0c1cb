"""The layouts of docs/own-data.md are read as the page says."""

import io
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smalti.cli import main as smalti
from smalti.data.datasets.open import open_source
from tests.data.tables import png
from tests.small_runs import picture

PAGE = (Path(__file__).parent.parent / "docs" / "own-data.md").read_text()
LAYOUT = re.compile(
    r"```text\n(?P<files>.*?)```\n+(?:`(?P<list>[\w.]+)`:\n+```csv\n(?P<rows>.*?)```\n+)?"
    r"```bash\n(?P<commands>.*?)```\n+Read as: `(?P<reading>[^`]+)`",
    re.DOTALL,
)
FOUND = list(LAYOUT.finditer(PAGE))


def write_shard(path: Path, number: int) -> None:
    """A shard of two images, of class 0 and of class 1."""
    with tarfile.open(path, "w") as shard:
        for label in range(2):
            jpeg = io.BytesIO()
            picture(2 * number + label, across=True).save(jpeg, "JPEG")
            for suffix, content in (("jpg", jpeg.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number}{label}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("layout", FOUND, ids=lambda layout: layout["commands"].split()[2])
def test_a_layout_is_read_as_the_page_says(
    layout: re.Match[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(layout["files"].split()):
        archive, packed, inner = name.partition(".zip/")
        if packed:
            with zipfile.ZipFile(f"{archive}.zip", "a") as file, file.open(inner, "w") as member:
                picture(number, across=True).save(member, "JPEG")
            continue
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            write_shard(Path(name), number)
        elif name.endswith(".jpg"):
            picture(number, across=True).save(name)
        else:
            Path(name).touch()
    if layout["list"]:
        Path(layout["list"]).write_text(layout["rows"])
    for command in layout["commands"].splitlines():
        assert smalti(shlex.split(command)[1:]) == 0
    assert f"read as       {layout['reading']}\n" in capsys.readouterr().out


def test_every_layout_of_the_page_is_tried() -> None:
    assert len(FOUND) == PAGE.count("Read as: ") == PAGE.count("```bash") == 9


def test_a_table_with_several_images_in_a_row_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = pa.array([[png(1), png(2)], [], [png(3)]])
    pq.write_table(pa.table({"images": cells, "patient": ["a", "b", "c"]}), "scans.parquet")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    source = open_source("slices.parquet", 1)
    assert [int(source[place].image[0, 0, 0]) for place in range(len(source))] == [1, 2, 3]
    assert source.column("patient") == ["a", "a", "c"]
