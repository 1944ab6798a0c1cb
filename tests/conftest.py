"""Set-up of all tests: shape annotations are executed, one thread, hypothesis without deadlines or chance."""

from jaxtyping import install_import_hook

# Before anything of smalti is imported: its annotations are then checked at every call of the tests.
install_import_hook(["smalti.functional", "smalti.models", "smalti.evaluation", "smalti.data"], "beartype.beartype")

import signal  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from tests.faults.kills import Nursery

settings.register_profile("smalti", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("smalti")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on many threads, and sums in one order are the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and processes of the tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Nursery]":
    """What forks runs as processes of their own, none of which imports torch again."""
    from tests.faults.kills import nursery

    with nursery(tmp_path_factory.mktemp("nursery")) as begun:
        yield begun


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, of two steps: `tokenizer`, `beit`, `crossed` (the decoder) and `classes` learned from
    `photos` (32 images of two classes), `scenes` (segmentation) from `scenery`. Who changes one works on a copy.
    """
    from tests.small_runs import finetune, pictures, pretrain, scenes, segment, train_tokenizer

    crossed = ["--masking", "random", "--decoder", "cross-attention"]
    place = tmp_path_factory.mktemp("runs")
    photos = pictures(place / "photos")
    assert train_tokenizer(photos, place / "tokenizer", 2) == 0
    assert pretrain(photos, place / "tokenizer", place / "beit", 2, "--accept-tokenizer") == 0
    assert pretrain(photos, place / "tokenizer", place / "crossed", 2, "--accept-tokenizer", *crossed) == 0
    assert finetune(photos, place / "beit", place / "classes", 2) == 0
    assert segment(scenes(place / "scenery"), place / "beit", place / "scenes", 2) == 0
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for the tests of a module; while it is open, its event loop is the one that runs in this process."""
    from tests.browser import launched

    with launched() as started:
        yield started


@pytest.fixture
def rng() -> torch.Generator:
    """Random inputs, the same in every run."""
    return torch.Generator().manual_seed(0)
