"""What a report says first of each kind of run, and of several."""

import json
from pathlib import Path
from typing import Any

import pytest

from smalti.runs.provenance import names_of
from smalti.runs.verdicts import demo_verdict, pretrain_verdict, together, tokenizer_verdict, verdict_of

TOKENS = {
    "train_images": 20000,
    "loss_nats": 2.65,
    "unigram_entropy_nats": 5.15,
    "neighbour_nats": 5.0,
    "accuracy": 0.35,
}
TOKENIZER = {"train_images": 900, "psnr_db": 22.25, "codebook_usage": 0.98, "vocab_size": 512, "perplexity": 394.0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "2.35 nats a masked token below the best guess that knows no image structure"),
        ({"neighbour_nats": None}, "2.50 nats a masked token below"),
        ({"loss_nats": 5.05}, "no better than a guess that copies or counts"),
        ({"unigram_entropy_nats": None}, "Its loss has no baseline"),
    ],
)
def test_a_loss_is_said_beside_the_better_of_its_baselines(changed: dict[str, Any], said: str) -> None:
    assert said in pretrain_verdict(TOKENS | changed).text


def test_the_baselines_of_a_loss_are_tiles() -> None:
    assert pretrain_verdict(TOKENS).facts == {
        "images learned from": "20,000",
        "loss": "2.65 nats",
        "unigram entropy": "5.15 nats",
        "copying the nearest": "5.00 nats",
        "guessed right": "35.0%",
    }
    pixels = pretrain_verdict({"pixel_loss": 0.2, "flat_pixel_loss": 0.5, "neighbour_pixel_loss": 0.4})
    assert pixels.facts == {"loss": "0.200", "patches of one colour": "0.500", "copying the nearest": "0.400"}
    assert "50.0% of the error below the best guess" in pixels.text


def test_a_codebook_is_said_beside_k_means() -> None:
    even, poor = TOKENIZER | {"kmeans_perplexity": 363.0}, TOKENIZER | {"kmeans_perplexity": 900.0}
    assert "as evenly as those of k-means" in tokenizer_verdict(even).text
    assert "less evenly than those of k-means" in tokenizer_verdict(poor).text
    assert "That is a part" in tokenizer_verdict(TOKENIZER | {"codebook_usage": 0.02}).text
    assert tokenizer_verdict(even).facts["perplexity of k-means"] == "363"


def test_a_demo_says_what_pretraining_was_worth() -> None:
    whole = {"mim": TOKENS, "tokenizer": TOKENIZER}
    probe = {"gain_points": -1.25, "pixels": {"linear": 0.8}}
    assert "linear probe" not in demo_verdict(whole).facts
    found = demo_verdict(whole | {"probe": probe})
    assert found.text.startswith("Images taken apart into visual tokens, masked, and dreamt back.")
    assert found.facts["linear probe"] == "-1.2 points"
    assert "1.2 points less than one of the same network untrained; one of raw pixels scores 80.0%." in found.text


def test_several_runs_are_compared_where_they_can_be(tmp_path: Path) -> None:
    results = {
        "a": ("Pretrain", {"bits_saved_per_token": 1.0}),
        "b": ("Pretrain", {"bits_saved_per_token": 2.0}),
        "c": ("Pretrain", {"pixel_loss": 1.0}),
        "t": ("TrainTokenizer", TOKENIZER),
        "begun": ("Pretrain", None),
    }
    for name, (kind, result) in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"smalti": "0.1.0", "config": {"kind": kind}}))
        if result is not None:
            (tmp_path / name / "result.json").write_text(json.dumps(result))
    found = together([str(tmp_path / name) for name in results])
    assert found.facts == {
        "a: bits saved a masked token": "1.00",
        "b: bits saved a masked token": "2.00",
        "t: PSNR": "22.2 dB",
    }
    assert found.text == "The best bits saved a masked token of 2 finished runs: b."
    assert verdict_of(str(tmp_path / "begun")).text == "Not finished yet: its curves so far."
    stages = together([str(tmp_path / name) for name in ("t", "begun")]).text
    assert stages.startswith("t: 98.0% of 512 visual tokens are in use.")
    assert stages.endswith("begun: Not finished yet: its curves so far.")


def test_runs_with_the_same_last_part_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a/beit", "b/beit", "c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text('{"smalti": "0.1.0", "config": {"kind": "Pretrain"}}')
        (tmp_path / place / "result.json").write_text(f'{{"bits_saved_per_token": {len(place)}.0}}')
    monkeypatch.chdir(tmp_path / "c")
    runs = ["../a/beit", "../b/beit", "."]
    assert names_of(runs) == {"../a/beit": "../a/beit", "../b/beit": "../b/beit", ".": "c"}
    assert list(together(runs).facts) == [f"{run}: bits saved a masked token" for run in (*runs[:2], "c")]
