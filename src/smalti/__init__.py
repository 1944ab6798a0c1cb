"""smalti: BEiT from scratch, both stages, on anyone's images.

    network = smalti.load("runs/beit")
    features = network.features(["a.jpg", "b.jpg"])  # 2 x D

What is in `__all__` is the public API; all else may change in any version. Nothing is imported before it is used, so
`import smalti` takes no time. Recipes, which make configurations, are in `smalti.recipes`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti.core.errors import SmaltiError
    from smalti.core.notebook import Result
    from smalti.data.load import Data
    from smalti.models.vit import ViT
    from smalti.runs.embed import Embed
    from smalti.runs.embed import main as embed
    from smalti.runs.evaluate import Evaluate
    from smalti.runs.evaluate import main as evaluate
    from smalti.runs.export import Export
    from smalti.runs.export import main as export
    from smalti.runs.finetune import Finetune
    from smalti.runs.finetune import main as finetune
    from smalti.runs.import_model import ImportModel
    from smalti.runs.import_model import main as import_model
    from smalti.runs.model_pictures import ModelPictures, Show, see
    from smalti.runs.network import Network, load, load_network, load_tokenizer
    from smalti.runs.predict import Predict
    from smalti.runs.predict import main as predict
    from smalti.runs.prepare import Prepare
    from smalti.runs.prepare import main as prepare
    from smalti.runs.pretrain import main as pretrain
    from smalti.runs.pretrain_config import Pretrain
    from smalti.runs.search import Search
    from smalti.runs.search import main as search
    from smalti.runs.serve import Serve
    from smalti.runs.serve import main as serve
    from smalti.runs.show import main as show
    from smalti.runs.tokenize import Tokenize
    from smalti.runs.tokenize import main as tokenize
    from smalti.runs.train_tokenizer import main as train_tokenizer
    from smalti.runs.train_tokenizer_config import TrainTokenizer
    from smalti.tokenizers.image_tokenizer import ImageTokenizer
    from smalti.training.training_plan import Plan

__version__ = "0.1.0"

_VERBS = {
    "train_tokenizer": "TrainTokenizer",
    "pretrain": "Pretrain",
    "finetune": "Finetune",
    "evaluate": "Evaluate",
    "prepare": "Prepare",
    "tokenize": "Tokenize",
    "embed": "Embed",
    "predict": "Predict",
    "search": "Search",
    "show": "Show",
    "serve": "Serve",
    "export": "Export",
    "import_model": "ImportModel",
}
"""Verbs of the command line, each a function of its configuration: `main` of the module of its name in `runs`."""

_WHERE = {config: f"runs.{verb}" for verb, config in _VERBS.items()} | {
    "SmaltiError": "core.errors",
    "Result": "core.notebook",
    "Data": "data.load",
    "ViT": "models.vit",
    "Plan": "training.training_plan",
    "ImageTokenizer": "tokenizers.image_tokenizer",
    "Network": "runs.network",
    "Show": "runs.model_pictures",
    "ModelPictures": "runs.model_pictures",
    "see": "runs.model_pictures",
    "load": "runs.network",
    "load_network": "runs.network",
    "load_tokenizer": "runs.network",
}
"""The module of every other public name."""

__all__ = [
    "Data",
    "Embed",
    "Evaluate",
    "Export",
    "Finetune",
    "ImageTokenizer",
    "ImportModel",
    "ModelPictures",
    "Network",
    "Plan",
    "Predict",
    "Prepare",
    "Pretrain",
    "Result",
    "Search",
    "Serve",
    "Show",
    "SmaltiError",
    "Tokenize",
    "TrainTokenizer",
    "ViT",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "import_model",
    "load",
    "load_network",
    "load_tokenizer",
    "predict",
    "prepare",
    "pretrain",
    "search",
    "see",
    "serve",
    "show",
    "tokenize",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in __all__ and name != "SmaltiError":
        import_module("smalti.core.versions").require_system()
    if name in _VERBS:
        found = import_module(f"smalti.runs.{name}").main
    elif name in _WHERE:
        found = getattr(import_module(f"smalti.{_WHERE[name]}"), name)
    else:
        raise AttributeError(f"module 'smalti' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
