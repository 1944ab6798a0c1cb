"""A masked image model, as JSON values: what it predicts for an image, why, and what its codes look like."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from smalti.core.config import require
from smalti.core.contracts import Batch
from smalti.core.errors import DataError
from smalti.core.rng import Stream, fold
from smalti.data.bands import header_of
from smalti.data.decode import decode_bytes
from smalti.data.reading import square
from smalti.data.values import Window
from smalti.evaluation.attention import attention
from smalti.evaluation.codebook_survey import prototypes
from smalti.evaluation.inpainting import Inpainter, entropy, inpaint, paint, sample_tokens
from smalti.functional.masking import Blockwise, Random
from smalti.report.pictures import data_uri, mask_overlay, to_pixels, token_map
from smalti.serving.requests import Attend, Mask, Predict
from smalti.training.targets import Pixels

Json: TypeAlias = dict[str, Any]
Picture: TypeAlias = UInt8[np.ndarray, "s s C"]

MAX_PIXELS = 50_000_000
"""Of an image that is given: decoded it takes up to three bytes a pixel."""
_MAX_ROWS = 400
"""Patches up to which the attention of all of them is sent at once."""


@dataclass(frozen=True)
class Predictor(Inpainter):
    """A pretrained network, and the images that it can be tried on.

    Attributes:
        name: what the model is called.
        side: pixels of the squares that images are cut to first.
        images: pictures to choose from, by name.
        window: the stored values of given files that were black and white in training; None: all that a format has.
        tiles: data URIs of the decoded codes that have been asked for, filled as needed.
    """

    name: str
    side: int
    images: Mapping[str, Picture]
    window: Window | None = None
    tiles: dict[int, str] = field(default_factory=dict)

    def facts(self) -> Json:
        """What the model is."""
        config, decoder, model = self.model.backbone.config, self.model.decoder, self.model
        blocks = [f"encoder {number}" for number in range(1, config.depth + 1)]
        blocks += [f"decoder {number}" for number in range(1, len(model.blocks) - config.depth + 1)]
        pictures = [{"name": name, "picture": data_uri(picture)} for name, picture in self.images.items()]
        return {
            "name": self.name,
            "target": "pixels" if self.tokenizer is None else "tokens",
            "decoder": "linear" if decoder is None else "cross-attention",
            "image_size": list(config.img_size),
            "channels": config.in_chans,
            "patch_size": config.patch_size,
            "grid": list(config.grid),
            "vocabulary": None if self.tokenizer is None else self.tokenizer.vocab_size,
            "masking": "random" if isinstance(self.views.masking, Random) else "blockwise",
            "mask_ratio": self.views.masking.count(config.grid) / (config.grid[0] * config.grid[1]),
            "layers": [
                {"name": name, "heads": own.num_heads} for name, own in zip(blocks, model.attentions, strict=True)
            ],
            "images": pictures,
        }

    def picture(self, image: str) -> Picture:
        """The centre square of a named or given image, (s, s, C). A data URI is a picture, whose values have a window.

        Raises:
            DataError: it is neither a name nor an image.
        """
        if image in self.images:
            return self.images[image]
        is_picture = image.startswith("data:")
        content = image.partition(",")[2] if is_picture else image
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise DataError("image is neither a name of /api/model nor base64") from None
        return self.decoded(data, None if is_picture else self.window)

    def decoded(self, data: bytes, window: Window | None) -> Picture:
        """The centre square of an image file, (s, s, C); `window`: the stored values that become black and white.

        Raises:
            DataError: it is none that smalti reads, is damaged, or too large.
        """
        channels = self.model.backbone.config.in_chans
        try:
            header = header_of(data)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise DataError("the image is too large", cause=f"use at most {MAX_PIXELS} pixels") from None
        except Exception:  # what is wrong is said when it is decoded
            header = None
        if header is not None and header.width * header.height > MAX_PIXELS:
            cause = f"{header.width} x {header.height} pixels, above the limit of {MAX_PIXELS}"
            raise DataError("the image is too large", cause=cause)
        return square(decode_bytes(data, "the image", channels, self.side, window), self.side)

    def mask(self, wanted: Mask) -> list[int]:
        """The masked patches, in rising order."""
        grid = self.model.backbone.config.grid
        if wanted.patches is not None:
            wrong = [patch for patch in wanted.patches if not 0 <= patch < grid[0] * grid[1]]
            require(not wrong, f"patch {wrong[:1]} of a grid of {grid[0]} x {grid[1]}", "they are counted from 0")
            return sorted(set(wanted.patches))
        masking = (Random if wanted.draw == "random" else Blockwise)(wanted.ratio)
        return np.flatnonzero(masking(fold(np.array([wanted.seed]), Stream.MASK), grid)[0]).tolist()

    def predict(self, asked: Predict) -> Json:
        """What is predicted for the masked patches, as described in openapi.py."""
        masked = self.mask(asked.mask)
        batch = self._batch(self.picture(asked.image), masked)
        original = to_pixels(batch.image)
        assert batch.mask is not None
        overlaid = mask_overlay(original, batch.mask.cpu().numpy(), self.model.backbone.config.patch_size)
        seen = self._tokens(batch, asked, masked) if self.tokenizer is not None else self._pixels(batch, masked)
        pictures = {"original": data_uri(original[0]), "masked": data_uri(overlaid[0])} | seen.pop("pictures")
        return {"masked": masked, "pictures": pictures} | seen

    def _pixels(self, batch: Batch, masked: Sequence[int]) -> Json:
        assert isinstance(self.target, Pixels)
        painted = paint(self.model, self.target, batch, self.compute) if masked else batch.image
        return {
            "tokens": None,
            "entropy": None,
            "guesses": [],
            "tiles": {},
            "loss_nats": None,
            "accuracy": None,
            "samples": [],
            "pictures": {"tokens": None, "tokenizer": None, "predicted": data_uri(to_pixels(painted)[0])},
            "note": "This model predicts pixels, so there are no visual tokens, guesses or samples.",
        }

    def _tokens(self, batch: Batch, asked: Predict, masked: Sequence[int]) -> Json:
        assert self.tokenizer is not None
        assert batch.ids is not None
        log_p = self.log_probabilities(batch)[0]
        own = batch.ids[0].cpu()
        best = log_p.argmax(-1)[None]
        draws = [sample_tokens(log_p, masked, asked.temperature, asked.seed, number) for number in range(asked.samples)]
        all_guesses = torch.cat([best, *(draw[None] for draw in draws)]).to(self.compute.device)
        seen = inpaint(self.model, self.tokenizer, batch.repeated(len(all_guesses)), self.compute, all_guesses)
        predicted = [data_uri(picture) for picture in to_pixels(seen.predicted)]
        colours = token_map(own.view(1, *self.model.backbone.config.grid).numpy(), self.tokenizer.stride)
        true = log_p.gather(1, own[masked][:, None])[:, 0]
        guesses = [self._guesses(*row, asked.guesses) for row in zip(masked, own[masked].tolist(), log_p, strict=True)]
        codes = {guess["code"] for of_patch in guesses for guess in of_patch["best"]} | {*own[masked].tolist()}
        return {
            "tokens": own.tolist(),
            "entropy": self._by_patch(entropy(log_p), masked, len(own)),
            "guesses": guesses,
            "tiles": self.tiles_of(sorted(codes) if asked.guesses else []),
            "loss_nats": -float(true.mean()) if masked else None,
            "accuracy": float((best[0] == own[masked]).float().mean()) if masked else None,
            "samples": [
                {"tokens": row.tolist(), "picture": picture}
                for row, picture in zip(seen.predicted_ids[1:], predicted[1:], strict=True)
            ],
            "pictures": {
                "tokens": data_uri(colours[0]),
                "tokenizer": data_uri(to_pixels(seen.tokenizer[:1])[0]),
                "predicted": predicted[0],
            },
            "predicted_tokens": seen.predicted_ids[0].tolist(),
            "note": "",
        }

    def _batch(self, pixels: Picture, masked: Sequence[int]) -> Batch:
        """One image with this mask."""
        rows, columns = self.model.backbone.config.grid
        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))
        return self.batch(image[None], np.isin(np.arange(rows * columns), masked))

    @staticmethod
    def _by_patch(values: Tensor, masked: Sequence[int], length: int) -> list[float | None]:
        """Values of masked patches in a list with a place for every patch."""
        found: list[float | None] = [None] * length
        for patch, value in zip(masked, values.tolist(), strict=True):
            found[patch] = value
        return found

    def _guesses(self, patch: int, true: int, log_p: Float[Tensor, "V"], count: int) -> Json:
        probability, codes = log_p.exp().sort(descending=True, stable=True)
        pairs = zip(codes[:count].tolist(), probability[:count].tolist(), strict=True)
        best = [{"code": code, "probability": share} for code, share in pairs]
        return {"patch": patch, "code": true, "probability": float(log_p[true].exp()), "best": best}

    def tiles_of(self, codes: Sequence[int]) -> dict[str, str]:
        """The decoded patch of each of these codes, amid equal ones, as a data URI."""
        assert self.tokenizer is not None
        new = [code for code in codes if code not in self.tiles]
        if new:
            painted = torch.stack(prototypes(self.tokenizer, torch.tensor(new), self.compute))
            self.tiles.update(zip(new, map(data_uri, to_pixels(painted)), strict=True))
        return {str(code): self.tiles[code] for code in codes}

    def attend(self, asked: Attend) -> Json:
        """Attention in one block and head, from one patch or from all."""
        blocks, length = self.model.attentions, self.views.backbone.grid[0] * self.views.backbone.grid[1]
        require(1 <= asked.layer <= len(blocks), f"layer {asked.layer}", f"use 1 to {len(blocks)}")
        heads = blocks[asked.layer - 1].num_heads
        require(0 <= asked.head <= heads, f"head {asked.head}", f"use 1 to {heads}, or 0 for their mean")
        require(asked.patch is None or 0 <= asked.patch < length, f"patch {asked.patch}", f"use 0 to {length - 1}")
        require(asked.patch is not None or length <= _MAX_ROWS, f"attention of {length} patches", "name a patch")
        batch = self._batch(self.picture(asked.image), self.mask(asked.mask))
        found = attention(self.model, batch, self.compute, asked.layer)
        patches, cls = (part.mean(0) if asked.head == 0 else part[asked.head - 1] for part in found)
        wanted = range(length) if asked.patch is None else [asked.patch]
        rows = [
            None
            if cls[patch].isnan()
            else {"patches": [round(value, 5) for value in patches[patch].tolist()], "cls": round(float(cls[patch]), 5)}
            for patch in wanted
        ]
        return {"layer": asked.layer, "head": asked.head, "from": list(wanted), "attention": rows}

    def nearest_codes(self, code: int, count: int) -> Json:
        """The codes whose decoded patches differ least from that of a code, as a root of mean squares in [0, 1]."""
        require(self.tokenizer is not None, "there are no codes", "this model predicts pixels")
        assert self.tokenizer is not None
        size = self.tokenizer.vocab_size
        require(0 <= code < size, f"code {code} of {size}", f"use 0 to {size - 1}")
        painted = torch.stack(prototypes(self.tokenizer, torch.arange(size), self.compute)).flatten(1)
        distance = (painted - painted[code]).square().mean(1).sqrt()
        order = [number for number in distance.argsort(stable=True).tolist() if number != code][:count]
        tiles = self.tiles_of([code, *order])
        nearest = [{"code": n, "distance": float(distance[n]), "tile": tiles[str(n)]} for n in order]
        return {"code": code, "tile": tiles[str(code)], "nearest": nearest}
