"""What every training run has, whatever it trains."""

from dataclasses import dataclass

from smalti.core.compute import Device, Precision
from smalti.core.config import require, setting
from smalti.data.load import Data
from smalti.data.transforms.views import RandomResizedCrop
from smalti.distributed.process_group import Ranks
from smalti.training.optim import AdamW
from smalti.training.training_plan import Plan


@dataclass(frozen=True)
class TrainingRun:
    """Images, steps, and where and how they are computed."""

    data: Data = Data()
    out: str = setting("", "the run folder to write")
    crop: RandomResizedCrop = RandomResizedCrop()
    optimiser: AdamW = AdamW()
    plan: Plan = Plan()
    ema_decay: float | None = setting(None, "a step; none: no averaging")
    profile: int = setting(0, "steps to record: profile.json in the run folder, and a table; 0: none", resume="free")
    precision: Precision = setting("auto", "number format")
    device: Device = setting("auto", "where to compute")
    seed: int = setting(0, "of order, crops, masks, mixing, noise, labels and weights")
    ranks: Ranks = Ranks()

    def __post_init__(self) -> None:
        require(self.ema_decay is None or 0 < self.ema_decay < 1, f"ema_decay {self.ema_decay}", "use one in (0, 1)")
        require(self.profile >= 0, f"profile is {self.profile}", "use 0 or more steps")
        require(0 <= self.seed < 2**63, f"a seed of {self.seed}", "use 0 to 2^63 - 1")
