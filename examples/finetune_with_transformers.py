"""Fine-tuning an exported backbone with the Trainer of Hugging Face's transformers.

    smalti export runs/beit --to huggingface --out exported/beit
    python examples/finetune_with_transformers.py exported/beit photos --out tuned

FOLDER was exported, PHOTOS has a folder for each class. smalti is not needed here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments


class Photos(Dataset[dict[str, Any]]):
    """The images below a folder with a folder for each class."""

    def __init__(self, folder: Path, processor: Any) -> None:
        self.files, self.processor = sorted(path for path in folder.glob("*/*") if path.is_file()), processor
        self.classes = sorted({path.parent.name for path in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> dict[str, Any]:
        path = self.files[place]
        pixels = self.processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.classes.index(path.parent.name)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, and write the classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", default="tuned")
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args(arguments)

    photos = Photos(given.photos, AutoImageProcessor.from_pretrained(given.folder))
    names = dict(enumerate(photos.classes))
    model = AutoModelForImageClassification.from_pretrained(given.folder, num_labels=len(names), id2label=names)
    settings = TrainingArguments(
        given.out,
        max_steps=given.steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=given.steps // 10,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model, settings, train_dataset=photos)
    trainer.train()
    trainer.save_model(given.out)
    print(f"written: {given.out}, {len(names)} classes, loss {trainer.state.log_history[-1]['train_loss']:.3f}")


if __name__ == "__main__":
    main()
