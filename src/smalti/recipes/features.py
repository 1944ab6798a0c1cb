"""k-means on the features of a trained network, the teacher: tokens for a second round of pretraining.

The teacher decides size and channels of images, and V is the power of two that leaves 500 tokens of the training images
for each code.

Hardware: any. Time: two forward passes of the teacher over at most a million patches, and ten rounds of k-means.
"""

from smalti.data.load import Data
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.teacher_features import FIT_IMAGES


def train_tokenizer() -> TrainTokenizer:
    """A token for every patch of `--tokenizer.teacher`. The plan has no part in it."""
    return TrainTokenizer(data=Data(), tokenizer=KMeansFeatures(), init_images=FIT_IMAGES)
