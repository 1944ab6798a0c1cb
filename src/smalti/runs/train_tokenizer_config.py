"""`smalti train-tokenizer`: stage one, an image tokenizer from unlabelled images.

Its configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smalti.core.config import part, require, setting
from smalti.data.transforms.views import NO_JITTER, ColorJitter
from smalti.functional.losses import Likelihood
from smalti.functional.schedules import Cosine, Ramp
from smalti.runs.training_run import TrainingRun
from smalti.tokenizers.dalle import DallE
from smalti.tokenizers.dvae import DVAE
from smalti.tokenizers.image_tokenizer import TokenizerConfig
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.quantised import FSQ, VQ
from smalti.tokenizers.simple import KMeansPatches, RandomProjection
from smalti.tokenizers.teacher_features import TeacherBased
from smalti.tokenizers.vqkd import VQKD
from smalti.training.objectives import Relaxation
from smalti.training.optim import Optimiser

_OF_DALLE = ("lr", "end_lr", "decay_ratio", "betas", "eps", "weight_decay")
"""Settings of the optimiser that DALL-E states."""


@dataclass(frozen=True)
class TrainTokenizer(TrainingRun):
    """Everything about a tokenizer run."""

    optimiser: Optimiser = part(Optimiser(), dict.fromkeys(_OF_DALLE, "DALL-E, appendix A.2"))
    tokenizer: DVAE | DallE | VQ | FSQ | KMeansPatches | RandomProjection | KMeansFeatures | VQKD = DVAE()
    relaxation: Relaxation = Relaxation()
    """Of the discrete VAEs only, DVAE and DallE."""
    likelihood: Likelihood = setting(
        "logit_laplace", "how reconstructions are compared: in nats, or as errors of pixels in [0, 1]", "DALL-E, A.3"
    )
    jitter: ColorJitter = NO_JITTER
    init_images: int = setting(
        1000, "images that the codebook is initialised from; 0: random weights, as in the papers"
    )
    ema_decay: float = setting(0.999, "of the average of weights, a step", "DALL-E, appendix A.2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tokenizer, TeacherBased):  # whose teacher decides them
            self._require_fit(self.tokenizer)
        require(self.init_images >= 0, f"init_images is {self.init_images}", "use 0 or more")
        require(
            self.init_images > 0 or self.planned_steps > 0, "a tokenizer fitted to no images", "use more init_images"
        )

    def _require_fit(self, tokenizer: TokenizerConfig) -> None:
        require(
            self.data.channels == tokenizer.in_chans,
            f"data.channels {self.data.channels} and tokenizer.in_chans {tokenizer.in_chans} differ",
            f"use --tokenizer.in-chans {self.data.channels}",
        )
        require(
            self.data.side % tokenizer.stride == 0,
            f"tokenizer.stride {tokenizer.stride} does not divide data.side {self.data.side}",
            f"use a side that is a multiple of {tokenizer.stride}",
        )

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """As of every run; and of discrete VAEs the temperature, and the weight of the KL."""
        if (annealing := self.annealing()) is None:
            return super().schedules()
        temperature, beta = annealing
        own = {"temperature": lambda step: temperature(step - 1), "KL weight": lambda step: beta(step - 1)}
        return super().schedules() | own

    def annealing(self) -> tuple[Cosine, Ramp | Cosine] | None:
        """Temperature and weight of the KL at each step, counted from 0; None of tokenizers that have none."""
        if not isinstance(self.tokenizer, DVAE | DallE):
            return None
        return self.relaxation.annealing(self.plan.steps), self.relaxation.ramp(self.plan.steps)

    @property
    def planned_steps(self) -> int:
        """Optimiser steps; 0 for tokenizers that are fitted to some images and not trained."""
        fitted = isinstance(self.tokenizer, KMeansPatches | RandomProjection | KMeansFeatures)
        return 0 if fitted else self.plan.steps
