"""The architecture of the public DALL-E tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smalti.core.contracts import Batch
from smalti.core.errors import CheckpointError, UsageError
from smalti.tokenizers.dalle import DallE, DallETokenizer
from smalti.training.checkpoint import load_weights
from smalti.training.objectives import DiscreteVAEObjective, Relaxation
from smalti.weights.dalle import read_dalle
from tests.contracts import check_tokenizer
from tests.weights.published import as_dall_e, halves, publish

SMALL = DallE(vocab_size=16, width=8, depth=1, code_width=4)
CONFIGS = [
    SMALL,
    DallE(vocab_size=32, stride=4, in_chans=1, width=16, depth=2, code_width=8),
    DallE(vocab_size=2, stride=16, in_chans=4, width=4, depth=1, code_width=1),
]


def images(config: DallE, num: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (num, config.in_chans, 32, 16), generator=rng, dtype=torch.uint8)


def halves_of(config: DallE) -> tuple[int, int]:
    """Parameters of the encoder and of the decoder."""
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in config.build().named_children()}
    encoder, decoder = ("embed", "encoder", "to_logits"), ("codebook", "decoder", "to_pixels")
    assert counts.keys() == {*encoder, *decoder}
    return sum(counts[name] for name in encoder), sum(counts[name] for name in decoder)


@pytest.mark.parametrize("config", CONFIGS)
def test_contract(config: DallE) -> None:
    check_tokenizer(config.build(), images(config))


def test_the_default_has_as_many_parameters_as_the_public_one() -> None:
    assert halves_of(DallE()) == (53_786_240, 43_829_766)


def test_parameters_counted_by_hand() -> None:
    """n_hid = 8, one block a group, inner widths 2, 4, 8, 16: every convolution is n_in · n_out · k² + n_out."""

    def conv(n_in: int, n_out: int, kernel: int) -> int:
        return n_in * n_out * kernel**2 + n_out

    encoder, decoder = conv(3, 8, 7) + conv(64, 16, 1), conv(16, 4, 1) + conv(8, 6, 1)
    for n_in, n_out in ((8, 8), (8, 16), (16, 32), (32, 64)):
        inner = n_out // 4
        encoder += conv(n_in, inner, 3) + 2 * conv(inner, inner, 3) + conv(inner, n_out, 1)
        encoder += conv(n_in, n_out, 1) if n_in != n_out else 0
    for n_in, n_out in ((4, 64), (64, 32), (32, 16), (16, 8)):
        inner = n_out // 4
        decoder += conv(n_in, n_out, 1) + conv(n_in, inner, 1) + 2 * conv(inner, inner, 3) + conv(inner, n_out, 3)
    assert halves_of(SMALL) == (encoder, decoder)


def test_branches_are_scaled_by_one_over_layers_squared() -> None:
    """With all branches silent but one, the difference between gains 1/16 and 1/64 can only be that of the gains."""
    for depth, gain in ((1, 1 / 9), (2, 1 / 36)):
        tokenizer = DallE(vocab_size=4, stride=4, width=4, depth=depth).build()
        block: Any = tokenizer.encoder.get_submodule("group_1.block_1")
        x = torch.linspace(-1, 1, 4 * 25).view(1, 4, 5, 5)
        torch.testing.assert_close(block(x), x + gain * block.res_path(x))
        assert torch.equal(x, torch.linspace(-1, 1, 4 * 25).view(1, 4, 5, 5)), "a block must not change its input"


def test_weights_are_drawn_from_a_normal_distribution_of_variance_one_over_fan_in() -> None:
    tokenizer = DallE(vocab_size=512, width=32).build()
    for name, parameter in tokenizer.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() >= 4096:
            deviation = float(parameter.detach().std()) * parameter[0].numel() ** 0.5
            assert deviation == pytest.approx(1, rel=0.06), name
    one, same, other = (SMALL.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["codebook.weight"], other["codebook.weight"])


def test_encoding_takes_the_greatest_logit() -> None:
    tokenizer = SMALL.build()
    with torch.no_grad():
        logits, ids = tokenizer.logits(images(SMALL)), tokenizer.encode(images(SMALL))
    assert logits.shape == (3, 16, 4, 2)
    assert torch.equal(ids, logits.argmax(1))


def test_decoding_ids_is_decoding_their_one_hot_vectors() -> None:
    tokenizer = SMALL.build()
    with torch.no_grad():
        ids = tokenizer.encode(images(SMALL))
        one_hot = F.one_hot(ids, 16).permute(0, 3, 1, 2).float()
        mean, log_scale = tokenizer.distribution(one_hot)
    assert mean.shape == log_scale.shape == (3, 3, 32, 16)
    expected = ((mean.sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(ids), expected, rtol=1e-5, atol=1e-6)


def test_pixels_are_mapped_inside() -> None:
    """A black image is one of 0.1, a white one of 0.9: the release's map_pixels, which no one has to call."""
    tokenizer = SMALL.build()
    seen: list[torch.Tensor] = []
    tokenizer.embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tokenizer.logits(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 8, 8))
    torch.testing.assert_close(seen[0], torch.tensor([0.1, 0.9])[:, None, None, None].expand(2, 3, 8, 8))


def test_logits_and_codebook_stay_in_full_precision_under_autocast() -> None:
    tokenizer = SMALL.build()
    seen: dict[str, torch.dtype] = {}
    for name in ("codebook", "decoder"):
        part = tokenizer.get_submodule(name)
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.no_grad():
        full = tokenizer.logits(images(SMALL))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = tokenizer.logits(images(SMALL))
            mean, _ = tokenizer.distribution(logits.softmax(1))
            picture = tokenizer.decode(logits.argmax(1))
    assert seen == {"codebook": torch.float32, "decoder": torch.bfloat16}
    assert logits.dtype == mean.dtype == picture.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float()) is False
    torch.testing.assert_close(logits, full, rtol=0.05, atol=0.05)


def test_encoding_in_bf16_takes_the_greatest_float32_logit() -> None:
    """Among 4096 codes bf16 cannot tell the best ones apart; what it finds is compared again in full precision."""
    tokenizer = DallE(vocab_size=4096, width=8, depth=1).build()
    pictures = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, ids = tokenizer.logits(pictures), tokenizer.encode(pictures)
    assert not torch.equal(logits.bfloat16().argmax(1), logits.argmax(1))
    assert torch.equal(ids, logits.argmax(1))


def test_it_can_be_trained_by_the_objective_of_stage_one() -> None:
    objective = DiscreteVAEObjective(SMALL.build(), Relaxation(), steps=10)
    batch = Batch(image=images(SMALL), index=torch.arange(3), key=torch.arange(3))
    output = objective(batch, torch.tensor(0))
    output.loss_sum.backward()
    assert torch.isfinite(output.loss_sum)
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 1}, "a vocabulary of 1"),
        ({"vocab_size": 10**6}, "a vocabulary of 1000000; use 2 to 16384"),
        ({"stride": 12}, "a stride of 12 pixels; use 4, 8 or 16"),
        ({"in_chans": 0}, "0 channels; use at least 1"),
        ({"width": 10}, "a width of 10; use a multiple of 4"),
        ({"depth": 0}, "0 blocks a group; use at least 1"),
        ({"code_width": 0}, "codebook vectors of length 0; use at least 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DallE(**fields)


# The published files


def read(config: DallE, folder: Path, zipped: bool = True) -> tuple[DallE, dict[str, torch.Tensor]]:
    return read_dalle([Path(path) for path in publish(config.build(), folder, zipped)])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_read_back(config: DallE, zipped: bool, tmp_path: Path) -> None:
    found, weights = read(config, tmp_path, zipped)
    assert found == config
    expected = config.build().state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    encoder, decoder = (Path(path) for path in publish(SMALL.build(), tmp_path))
    found, weights = read_dalle([decoder, encoder])
    assert found == SMALL
    assert len(weights) == len(SMALL.build().state_dict())
    with pytest.raises(CheckpointError, match=r"encoder.pkl and encoder.pkl hold Encoder; both halves are needed"):
        read_dalle([encoder, encoder])


@pytest.mark.parametrize(
    ("half", "layer", "value", "message"),
    [
        (0, "blocks.input.w", None, "encoder.pkl and decoder.pkl hold no DALL-E tokenizer; layers are missing"),
        (0, "blocks.input.b", None, r"do not fit together; embed.bias is missing, expected \(8,\); get both"),
        (0, "blocks.input.w", torch.zeros(6, 3, 7, 7), "hold no DALL-E tokenizer; a width of 6; use a multiple of 4"),
        (
            0,
            "blocks.input.w",
            torch.zeros(12, 3, 7, 7),
            r"is \(64,\), expected \(96,\), .* and 78 more; get both files again",
        ),
        (
            0,
            "blocks.output.conv.w",
            torch.zeros(9, 64, 1, 1),
            r"to_logits.weight is \(9, 64, 1, 1\), expected \(16, 64",
        ),
        (1, "blocks.input.w", torch.zeros(4), "hold no DALL-E tokenizer; layers are missing"),
        (1, "blocks.extra.w", torch.zeros(4), r"decoder.extra.weight is \(4,\), expected nothing"),
        (1, "blocks.output.conv.b", torch.full((6,), torch.nan), "do not fit together; to_pixels.bias is not finite"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    half: int, layer: str, value: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    paths = [Path(path) for path in publish(SMALL.build(), tmp_path)]
    network = halves(SMALL.build())[half]
    owner, _, kind = layer.rpartition(".")
    if not hasattr(network.get_submodule("blocks"), owner.split(".")[1]):
        network.get_submodule("blocks").add_module(owner.split(".")[1], torch.nn.Sequential())
    network.get_submodule(owner).register_parameter(kind, None if value is None else torch.nn.Parameter(value))
    with as_dall_e():
        torch.save(network, paths[half])
    with pytest.raises(CheckpointError, match=message):
        read_dalle(paths)


# The package of the release (extra `peers`)


@pytest.fixture
def release() -> Any:
    return pytest.importorskip("dall_e")


@pytest.mark.parametrize("zipped", [True, False])
def test_parity_with_the_release(release: Any, tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    encoder, decoder = release.Encoder(n_hid=64, vocab_size=512), release.Decoder(n_hid=64, vocab_size=512)
    paths = (tmp_path / "encoder.pkl", tmp_path / "decoder.pkl")
    for half, path in zip((encoder, decoder), paths, strict=True):
        torch.save(half, path, _use_new_zipfile_serialization=zipped)
    config, weights = read_dalle(paths)
    tokenizer = DallETokenizer(config)
    load_weights(tokenizer, weights, "release")
    pictures = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = encoder(release.map_pixels(pictures))
        ids = expected.argmax(1)
        relaxed = (4 * expected).softmax(1)
        torch.testing.assert_close(tokenizer.logits(pictures), expected, rtol=0, atol=1e-5)
        assert torch.equal(tokenizer.encode(pictures), ids)
        torch.testing.assert_close(torch.cat(tokenizer.distribution(relaxed), 1), decoder(relaxed), rtol=0, atol=1e-5)
        one_hot = F.one_hot(ids, 512).permute(0, 3, 1, 2).float()
        picture = release.unmap_pixels(decoder(one_hot)[:, :3].sigmoid())
        torch.testing.assert_close(tokenizer.decode(ids), picture, rtol=0, atol=1e-5)


def test_the_default_has_the_layers_of_the_release(release: Any) -> None:
    with torch.device("meta"):
        peers = release.Encoder(device="meta"), release.Decoder(device="meta")
        sizes = tuple(sum(p.numel() for p in peer.parameters()) for peer in peers)
    assert sizes == halves_of(DallE())
