"""k-means on patches of small colour images, 32 x 32: a baseline without training; 64 visual tokens of 1024.

Hardware: any. Time: seconds.
"""

from smalti.data.load import Data
from smalti.data.transforms.views import RandomResizedCrop
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.simple import KMeansPatches


def train_tokenizer() -> TrainTokenizer:
    """A token for every 4 x 4 pixels. The plan has no part in it."""
    return TrainTokenizer(
        data=Data(channels=3, side=32),
        tokenizer=KMeansPatches(vocab_size=1024, stride=4, in_chans=3),
        crop=RandomResizedCrop(scale=(0.6, 1.0)),
    )
