"""`smalti serve`: a page on this machine to try a pretrained model on images, and the JSON API behind it."""

import importlib.util
import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from smalti.core.compute import Compute, Device, Precision, choose_compute
from smalti.core.config import require, setting
from smalti.core.errors import UsageError
from smalti.core.log import printable
from smalti.data.datasets.dataset import embedded, embedded_photographs
from smalti.data.datasets.open import EMBEDDED, open_source
from smalti.data.decode import decode
from smalti.data.reading import square
from smalti.data.token_cache import network_digest
from smalti.evaluation.feature_files import open_described, recorded_images
from smalti.evaluation.neighbours import scale_of_file
from smalti.runs.folder import read_config, read_kind, run_of
from smalti.runs.models import load_inpainter
from smalti.runs.pretrain_config import Pretrain

if TYPE_CHECKING:
    from smalti.serving.nearest_images import NearestImages
    from smalti.serving.predictions import Predictor

_MIN_TOKEN = 16
_EMBEDDED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
"""Fashion-MNIST: one of each class, of the images that nothing learns from."""


@dataclass(frozen=True)
class Serve:
    """Which model, and to whom."""

    model: str
    """A run of `smalti pretrain`, with the tokenizer that it names."""
    host: str = setting("127.0.0.1", "address to listen at; beyond this machine only with a token")
    port: int = setting(8421, "0: any that is free")
    token: str = setting("", "what requests must bring; at least 16 characters, visible ASCII")
    features: str = setting("", "a file of `smalti embed` with this model, in which nearest images are found")
    data: str = setting(
        "", "where the images of the features are; empty: where they were, in the folder of the features"
    )
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, f"port {self.port}", "use 1 to 65535, or 0 for any that is free")
        visible = self.token.isascii() and self.token.isprintable() and " " not in self.token
        require(
            not self.token or (len(self.token) >= _MIN_TOKEN and visible),
            "a token that is short, or has other characters",
            "use --token $(openssl rand -hex 16)",
        )
        require(
            bool(self.token) or self.is_local,
            f"host {self.host} without a token",
            "others could use the model: add --token $(openssl rand -hex 16), or listen at 127.0.0.1",
        )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def main(config: Serve) -> dict[str, Any]:
    """Answer requests until Ctrl-C.

    Raises:
        UsageError: the extra is missing, the port is taken, or the model cannot predict.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    require(not missing, f"smalti serve needs {' and '.join(missing)}", "pip install 'smalti[serve]'")
    import uvicorn

    from smalti.serving.app import build

    listening = _listen(config)
    with listening:
        compute = choose_compute(config.device, config.precision)
        predictor = load_predictor(config.model, compute)
        nearest = load_nearest(config, predictor) if config.features else None
        app = build(predictor, nearest, config.token, config.is_local)
        name = f"[{config.host}]" if ":" in config.host else config.host
        url = f"http://{name}:{listening.getsockname()[1]}/"
        with_token = "#token=TOKEN" if config.token else ""
        print(f"{printable(config.model)} is at {url}{with_token}  (Ctrl-C ends it)", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=256,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=5,
            )
        )
        with suppress(KeyboardInterrupt):  # SIGTERM too: either is how a server ends
            server.run(sockets=[listening])
    return {"url": url}


def load_predictor(run: str, compute: Compute) -> "Predictor":
    """The model of a pretraining run, ready to predict.

    Raises:
        UsageError: it is another run, or a backbone alone.
    """
    from smalti.serving.predictions import Predictor

    kind = read_kind(run)
    if kind != Pretrain.__name__:
        fix = "give a run of smalti pretrain; smalti show draws what a tokenizer sees"
        raise UsageError(
            f"{run} is {run_of(kind)}", cause="masked patches are predicted by a pretrained model", fix=fix
        )
    data, fix = read_config(run, Pretrain).data, "smalti show draws what it sees"
    shown = f"the page shows grey and RGB images, and {run} reads {data.channels} channels"
    require(data.channels in (1, 3), shown, fix)
    found = load_inpainter(run, compute)
    images = _images(data.channels, data.side, data.path == EMBEDDED)
    name, window = "/".join(Path(run).expanduser().resolve().parts[-2:]), data.known_window
    return Predictor(found.model, found.tokenizer, found.target, found.views, compute, name, data.side, images, window)


def load_nearest(config: Serve, predictor: "Predictor") -> "NearestImages":
    """The features to search in, which must be those of this model.

    Raises:
        DataError: they, or their images, cannot be read; or these are elsewhere, and `data` does not say where.
        UsageError: another network made them.
    """
    from smalti.serving.nearest_images import NearestImages

    features, backbone = open_described(Path(config.features).expanduser()), predictor.model.backbone
    if network_digest(backbone) != features.about["weights"]:
        cause = f"another network made them, which then was in {features.about['model']}"
        raise UsageError(f"{features.path} has no features of {config.model}", cause=cause, fix="use smalti embed")
    source = open_source(config.data or recorded_images(features), 3, part="all", window=predictor.window)
    return NearestImages(features, scale_of_file(features), source, backbone, predictor.compute)


def _images(channels: int, side: int, fashion: bool) -> dict[str, UInt8[np.ndarray, "s s C"]]:
    """The pictures to choose from: photographs of the package, and before them Fashion-MNIST where that was learned."""
    found: dict[str, UInt8[np.ndarray, "s s C"]] = {}
    if fashion:
        held_out = embedded("test").with_channels(channels)
        for number in _EMBEDDED:
            name = held_out.classes[int(held_out.labels[number])].lower().replace("/", " or ")
            found[name] = square(held_out.images[number].permute(1, 2, 0).numpy(), side)
    for path in sorted(embedded_photographs().iterdir()):
        found[path.stem.replace("_", " ")] = square(decode(path, channels, side), side)
    return found


def _listen(config: Serve) -> socket.socket:
    """The socket, before anything is loaded.

    Raises:
        UsageError: the address is not of this machine, or taken.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {config.host}", cause=error.strerror or str(error), fix="see --host"
        ) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        what = f"cannot listen at {config.host}, port {config.port}"
        raise UsageError(what, cause=error.strerror or str(error), fix="use --port 0 for any that is free") from error
    return listening
