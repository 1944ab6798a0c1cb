"""The loop: one step is the gradient step it says it is, and a run is a pure function of its configuration."""

import copy
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smalti.core.compute import Compute
from smalti.core.contracts import Batch, Objective, StepOutput
from smalti.core.errors import NumericError, StoppedError, UsageError
from smalti.core.log import Log
from smalti.data.datasets.dataset import InMemoryDataset
from smalti.data.loader import InMemoryViewSource, Loader, Sampler
from smalti.data.transforms.views import RandomResizedCrop, TwoViews
from smalti.functional.masking import mask_index
from smalti.models.mim import build_mim
from smalti.models.vit import ViT
from smalti.training.checkpoint import read_checkpoint
from smalti.training.loop import RunHooks, fit
from smalti.training.objectives import MaskedImageModeling
from smalti.training.optim import Optimiser
from smalti.training.trainer import Trainer, mean_metrics
from smalti.training.training_plan import Plan

CPU = Compute(torch.device("cpu"), torch.float32)
OPTIMISER = Optimiser(lr=0.01, warmup_ratio=0.2)


class MeanGrey(Objective):
    """Predict the mean grey of an image from a few of its pixels: small, and with weights of unequal size."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        guess = self.model(batch.image[:, 0, :4, :4].flatten(1))[:, 0]
        errors = (guess - batch.image.mean((1, 2, 3))).square()
        count = torch.tensor(float(len(errors)))
        return StepOutput(errors.sum(), count, {"worst": (errors.max().detach() * count, count)})


class UnequalWeights(MeanGrey):
    """The same, where some images count ten times: parts of a batch weigh differently."""

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        guess = self.model(batch.image[:, 0, :4, :4].flatten(1))[:, 0]
        counts = 1.0 + 9 * (batch.index % 3 == 0)
        errors = counts * (guess - batch.image.mean((1, 2, 3))).square()
        return StepOutput(errors.sum(), counts.sum(), {"error": (errors.sum().detach(), counts.sum())})


class MeanGreyByConvolution(MeanGrey):
    """The same from a 3 x 3 convolution whose weights lie in memory channels last, as those of the tokenizer do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 1)]
            self.model = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        errors = (self.model(batch.image)[:, 0] - batch.image.mean((1, 2, 3))).square()
        return StepOutput(errors.sum(), torch.tensor(float(len(errors))), {})


class MeanGreyThatFollows(MeanGrey):
    """The same, with state that no gradient moves: some in the model, some in the objective."""

    whole_batches = True
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.model.register_buffer("seen", torch.zeros(16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.latest: Tensor | None = None

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        self.latest = batch.image[:, 0, :4, :4].flatten(1).mean(0)
        output = super().forward(batch, step)
        return output._replace(loss_sum=output.loss_sum * (1 + self.model.get_buffer("seen").mean()))

    def after_step(self, step: int) -> None:
        assert self.latest is not None
        self.model.get_buffer("seen").lerp_(self.latest, 0.5 / step)
        self.calls += 1


class Saving(RunHooks):
    """Hooks that save, and do nothing else."""

    go_on = "it"

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.call = save

    def save(self, trainer: Trainer) -> None:
        self.call(trainer)


def batches(seed: int = 0) -> Loader:
    images = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    view_source = InMemoryViewSource(
        InMemoryDataset(images, torch.zeros(20, dtype=torch.int64)), TwoViews(RandomResizedCrop(), (8, 8))
    )
    return Loader(view_source, Sampler(20, 6, seed))


def trainer(
    steps: int = 12,
    optimiser: Optimiser = OPTIMISER,
    ema_decay: float | None = 0.9,
    objective: Callable[[], Objective] = MeanGrey,
    accumulate: int = 1,
) -> Trainer:
    return Trainer(objective(), optimiser, Plan(steps=steps, batch_size=6, accumulate=accumulate), ema_decay)


def weights(made: Trainer) -> dict[str, Tensor]:
    """Everything a run ends with: trained and averaged weights and the optimiser's moments."""
    found = {f"raw.{name}": value.clone() for name, value in made.objective.model.state_dict().items()}
    found |= {f"trained.{name}": value.clone() for name, value in made.eval_model.state_dict().items()}
    found |= {f"own.{name}": value.clone() for name, value in made.objective.named_buffers(recurse=False)}
    for name, parameter in made.objective.model.named_parameters():
        found |= {f"{key}.{name}": value.clone() for key, value in made.optimizer.state[parameter].items()}
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(made: Trainer, steps: int = 12, log: Log | None = None, **options: Any) -> Trainer:
    plan = Plan(steps=steps, batch_size=6, log_every=5, save_every=5)
    fit(made, batches(), plan, log or Log(), title="test", compute=CPU, **options)
    return made


def test_a_step_moves_the_weights_as_adamw_on_the_mean_loss_does() -> None:
    made, batch = trainer(ema_decay=None), batches()(0)
    model = copy.deepcopy(made.objective.model)
    reference = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.05 if p.ndim > 1 else 0.0} for p in model.parameters()],
        lr=OPTIMISER.lr_schedule(12)(1),
        betas=(0.9, 0.999),
    )
    (model(batch.image[:, 0, :4, :4].flatten(1))[:, 0] - batch.image.mean((1, 2, 3))).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 3.0)
    reference.step()

    output, found_norm = made.train_step(batch, CPU)
    assert float(found_norm) == pytest.approx(float(norm), rel=1e-5)
    assert float(output.weight) == 6
    for ours, expected in zip(made.objective.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_average_knows_how_many_steps_are_done() -> None:
    made = trainer(ema_decay=0.9)
    start = copy.deepcopy(made.objective.model)
    made.train_step(batches()(0), CPU)
    triples = zip(*(of.parameters() for of in (made.eval_model, start, made.objective.model)), strict=True)
    for average, before, now in triples:
        torch.testing.assert_close(average, before.lerp(now, 1 - 2 / 11))


def test_gradients_are_clipped_to_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(optimiser=Optimiser(clip_grad=1e-3))
    seen: list[float] = []

    def look(*_: object) -> None:
        squares = [p.grad.square().sum() for p in made.objective.model.parameters() if p.grad is not None]
        seen.append(float(torch.stack(squares).sum().sqrt()))

    made.optimizer.register_step_pre_hook(look)
    _, norm = made.train_step(batches()(0), CPU)
    assert float(norm) > 1e-3
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


def test_gradients_do_not_pile_up_over_steps() -> None:
    """At a vanishing learning rate two steps on one batch see the same gradient."""
    made = trainer(optimiser=Optimiser(lr=1e-12, end_lr=0.0))
    norms = [float(made.train_step(batches()(0), CPU)[1]) for _ in range(2)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(accumulate: int) -> None:
    whole, parts = (trainer(objective=UnequalWeights, accumulate=number) for number in (1, accumulate))
    for step in range(3):
        (expected, norm), (found, found_norm) = (made.train_step(batches()(step), CPU) for made in (whole, parts))
        assert mean_metrics(found) == pytest.approx(mean_metrics(expected), rel=1e-5)
        assert float(found.weight) == float(expected.weight)
        assert float(found_norm) == pytest.approx(float(norm), rel=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-4, atol=1e-6)


def test_the_mean_of_unequal_parts_is_not_the_mean_of_their_means() -> None:
    """What the test above would miss if all parts weighed the same."""
    sums = [UnequalWeights()(part, torch.tensor(0)) for part in batches()(0).split(3)]
    assert len({float(part.weight) for part in sums}) > 1


def masked(counts: list[int]) -> Batch:
    """Images of 9 patches, of which so many are masked, with tokens and keys."""
    chance = torch.Generator().manual_seed(3)
    mask = torch.arange(9) < torch.tensor(counts)[:, None]
    index, weight = (torch.from_numpy(array) for array in mask_index(mask.numpy(), max(counts)))
    return Batch(
        image=torch.rand(len(counts), 1, 12, 12, generator=chance),
        index=torch.arange(len(counts)),
        key=torch.randint(1 << 62, (len(counts),), generator=chance),
        ids=torch.randint(5, (len(counts), 9), generator=chance),
        mask=mask,
        mask_index=index,
        mask_weight=weight,
    )


@pytest.mark.parametrize("counts", [[1, 7, 2, 2, 8, 5], [0, 0, 2, 2, 8, 5]])
def test_masked_image_modeling_in_parts_is_that_of_the_whole_batch(counts: list[int]) -> None:
    """Masks of unequal size, also none in the first part, and stochastic depth, drawn for each image by itself."""
    vit = ViT(img_size=(12, 12), patch_size=4, in_chans=1, embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.5)
    whole, parts = (
        trainer(objective=lambda: MaskedImageModeling(build_mim(vit, 5)), accumulate=number) for number in (1, 3)
    )
    for made in (whole, parts):
        made.objective.train()
    batch = masked(counts)
    (expected, norm), (found, found_norm) = (made.train_step(batch, CPU) for made in (whole, parts))
    assert float(found.weight) == float(expected.weight) == sum(counts)
    assert mean_metrics(found) == pytest.approx(mean_metrics(expected), rel=1e-5)
    assert float(found_norm) == pytest.approx(float(norm), rel=1e-4)
    for one, other in zip(*(made.objective.model.parameters() for made in (whole, parts)), strict=True):
        gradients = whole.optimizer.state[one]["exp_avg"], parts.optimizer.state[other]["exp_avg"]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_in_which_nothing_counts_has_no_gradient(accumulate: int) -> None:
    vit = ViT(img_size=(12, 12), patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=2)
    made = trainer(objective=lambda: MaskedImageModeling(build_mim(vit, 5)), accumulate=accumulate)
    batch = masked([1, 7, 2, 2, 8, 5])
    output, norm = made.train_step(replace(batch, mask_weight=torch.zeros_like(batch.masks[2])), CPU)
    assert (float(norm), set(mean_metrics(output).values()), made.step) == (0.0, {0.0}, 1)


def test_in_parts_no_part_is_larger_than_it_should_be() -> None:
    made, sizes = trainer(accumulate=3), list[int]()
    made.objective.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0].image)))
    made.train_step(batches()(0), CPU)
    assert sizes == [2, 2, 2]


def test_a_step_in_parts_that_is_no_number_changes_nothing() -> None:
    made = trainer(accumulate=3)
    made.train_step(batches()(0), CPU)
    before, bad = weights(made), batches()(1)
    bad.image[-1] = float("nan")
    with pytest.raises(NumericError, match="the gradient is not finite at step 1"):
        made.train_step(bad, CPU)
    assert same(weights(made), before)


def test_what_follows_whole_batches_cannot_be_trained_in_parts() -> None:
    message = (
        "accumulate is 2, and the codes of this tokenizer are counted or moved over whole batches;"
        " use --plan.accumulate 1, and a smaller --plan.batch-size where memory is short"
    )
    with pytest.raises(UsageError, match=message):
        trainer(objective=MeanGreyThatFollows, accumulate=2)


def test_the_learning_rate_is_scaled_to_the_batch_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(
        trainer(optimiser=Optimiser(lr=0.01, end_lr=0.001, lr_batch_size=12)), log=Log(tmp_path / "metrics.jsonl")
    )
    assert "learning rate 1.0e-2 at batch 12 -> 5.0e-3 at batch 6\n" in capsys.readouterr().err
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["lr"] == pytest.approx(0.0005)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.0005)


def test_an_absolute_learning_rate_needs_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    run(trainer())
    assert "learning rate" not in capsys.readouterr().err


def warming_up(frozen_steps: int) -> Trainer:
    """The first layer is frozen for so many steps."""
    objective = MeanGrey()
    frozen = next(objective.model.children()).parameters()
    return Trainer(objective, OPTIMISER, Plan(steps=12, batch_size=6), 0.9, frozen=frozen, frozen_steps=frozen_steps)


def test_what_is_frozen_neither_moves_nor_decays_nor_has_moments_until_its_first_step() -> None:
    made, given = warming_up(3), batches()
    start = copy.deepcopy(made.objective.model.state_dict())
    for step in range(3):
        made.train_step(given(step), CPU)
    now, average = made.objective.model.state_dict(), made.eval_model.state_dict()
    for name, value in now.items():
        assert torch.equal(value, start[name]) == name.startswith("0."), name
        assert torch.equal(average[name], start[name]) == name.startswith("0."), name
    layers: Any = made.objective.model
    frozen, head = layers[0].weight, layers[2].weight
    assert frozen not in made.optimizer.state
    made.train_step(given(3), CPU)
    assert not torch.equal(frozen, start["0.weight"])
    assert [float(made.optimizer.state[p]["step"]) for p in (frozen, head)] == [1, 4]


def test_the_norm_that_is_clipped_is_that_of_what_learns() -> None:
    norms = []
    for frozen_steps in (1, 0):
        made = warming_up(frozen_steps)
        norms.append(float(made.train_step(batches()(0), CPU)[1]))
    assert 0 < norms[0] < norms[1]


@pytest.mark.parametrize("stop", [2, 3, 4, 7])
def test_a_frozen_warm_up_resumes_bit_by_bit_on_both_sides_of_its_end(stop: int, tmp_path: Path) -> None:
    whole = run(warming_up(3))
    left = warming_up(3)
    for step in range(stop):
        left.train_step(batches()(step), CPU)
    left.save(tmp_path)
    resumed = warming_up(3)
    resumed.load_state(read_checkpoint(tmp_path), str(tmp_path))
    assert len(resumed.optimizer.state) == (2 if stop <= 3 else 4)
    assert same(weights(run(resumed)), weights(whole))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_no_number_raises_and_changes_nothing(value: float) -> None:
    made = trainer()
    made.train_step(batches()(0), CPU)
    before, bad = weights(made), batches()(1)
    bad.image[0, 0, 0, 0] = value
    with pytest.raises(NumericError, match=r"the gradient is not finite at step 1; loss .*; lower the learning rate"):
        made.train_step(bad, CPU)
    assert same(weights(made), before)
    assert made.step == 1


def test_what_follows_the_weights_moves_after_each_step_that_did_not_fail() -> None:
    made, bad = trainer(objective=MeanGreyThatFollows), batches()(1)
    made.train_step(batches()(0), CPU)
    before = weights(made)
    assert before["raw.seen"].any()
    assert torch.equal(before["trained.seen"], before["raw.seen"])
    bad.image[:] = float("nan")
    with pytest.raises(NumericError):
        made.train_step(bad, CPU)
    assert same(weights(made), before)
    assert int(before["own.calls"]) == 1


def test_training_can_go_on_after_a_bad_batch_as_if_it_had_not_been() -> None:
    made, reference = trainer(), trainer()
    bad = batches()(1)
    bad.image[:] = float("nan")
    with pytest.raises(NumericError):
        made.train_step(bad, CPU)
    made.train_step(batches()(0), CPU)
    reference.train_step(batches()(0), CPU)
    assert same(weights(made), weights(reference))


def test_two_identical_runs_end_in_identical_bits() -> None:
    assert same(weights(run(trainer())), weights(run(trainer())))


def test_chance_elsewhere_does_not_change_a_run() -> None:
    reference = weights(run(trainer()))
    torch.rand(17)
    assert same(weights(run(trainer())), reference)


@pytest.mark.parametrize("objective", [MeanGrey, MeanGreyByConvolution, MeanGreyThatFollows])
@pytest.mark.parametrize("ema_decay", [0.9, None])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, stop: int, ema_decay: float | None, objective: Callable[[], Objective]
) -> None:
    reference = weights(run(trainer(ema_decay=ema_decay, objective=objective)))
    run(trainer(ema_decay=ema_decay, objective=objective), steps=stop).save(tmp_path)
    resumed = trainer(ema_decay=ema_decay, objective=objective)
    resumed.load_state(read_checkpoint(tmp_path), str(tmp_path))
    assert resumed.step == stop
    assert same(weights(run(resumed)), reference)


def test_weights_are_written_once_without_their_average_and_checkpoints_with_them_twice_can_be_read() -> None:
    made = run(trainer(ema_decay=None, objective=MeanGreyThatFollows), steps=3)
    left = made.checkpoint()
    assert not any(name.startswith("raw.") for name in left.state)
    raw = {f"raw.{name}": value for name, value in left.model.items()}
    earlier = replace(left, state={name: value.clone() for name, value in (left.state | raw).items()})
    resumed = trainer(objective=MeanGreyThatFollows, ema_decay=None)
    resumed.load_state(earlier, "an earlier version")
    assert same(weights(run(resumed)), weights(run(made)))


def test_a_finished_run_does_nothing_more() -> None:
    made = run(trainer())
    before = weights(made)
    assert same(weights(run(made)), before)
    assert made.step == 12


def test_the_loss_falls() -> None:
    losses = []
    made = trainer(steps=200)
    for step in range(200):
        output, _ = made.train_step(batches()(step), CPU)
        losses.append(float(output.loss_sum.detach() / output.weight))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_what_is_recorded(tmp_path: Path) -> None:
    run(trainer(), log=Log(tmp_path / "metrics.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"stage", "step", "lr", "grad_norm", "loss", "worst"} <= set(lines[0])
    assert lines[-1]["lr"] == pytest.approx(OPTIMISER.lr_schedule(12)(12))
    assert all(line["stage"] == "test" for line in lines)


def test_saving_happens_at_its_steps_and_at_the_end() -> None:
    saved: list[int] = []
    run(trainer(), hooks=Saving(lambda made: saved.append(made.step)))
    assert saved == [5, 10, 12]


@pytest.mark.parametrize("at", [5, 12])
def test_d02_a_signal_that_comes_while_saving_leads_to_no_second_checkpoint(at: int) -> None:
    """Also at the last step: what a run measures afterwards can wait for its resume."""
    saved: list[int] = []

    def save(made: Trainer) -> None:
        saved.append(made.step)
        if made.step == at:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match=rf"^test after step {at}, saved; on SIGTERM; go on with it$") as stop:
        run(trainer(), hooks=Saving(save))
    assert stop.value.exit_code == 75
    assert saved == [step for step in (5, 10, 12) if step <= at]


def test_a_run_that_nobody_saves_stops_as_well() -> None:
    made = trainer()
    made.optimizer.register_step_post_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError, match=r"^test after step 1, not saved; on SIGINT$") as stop:
        run(made)
    assert stop.value.exit_code == 130


def test_a_signal_that_asks_for_a_checkpoint_gets_one_and_changes_nothing() -> None:
    saved: list[int] = []
    reference, made = weights(run(trainer())), trainer()
    made.optimizer.register_step_post_hook(lambda *_: signal.raise_signal(signal.SIGUSR1) if made.step == 2 else None)
    assert same(weights(run(made, hooks=Saving(lambda made: saved.append(made.step)))), reference)
    assert saved == [3, 5, 10, 12]


def test_a_loss_that_is_not_finite_stops_a_step_whose_gradient_is() -> None:
    class Constant(MeanGrey):
        def forward(self, batch: Batch, step: Tensor) -> StepOutput:
            output = super().forward(batch, step)
            return output._replace(loss_sum=output.loss_sum + float("inf"))

    made = trainer(objective=Constant)
    with pytest.raises(NumericError, match="the loss is not finite at step 0; loss inf; lower"):
        made.train_step(batches()(0), CPU)


def test_a_loss_that_jumps_is_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(steps=60)
    made.objective.register_forward_hook(
        lambda _, given, output: output._replace(loss_sum=output.loss_sum + 1e6 * (int(given[1]) == 40))
    )
    fit(made, batches(), Plan(steps=60, batch_size=6, log_every=1), Log(), title="test", compute=CPU)
    said = capsys.readouterr().err
    assert "warning: the loss jumps to " in said
    assert " at step 41; the median of the last 40 logged is " in said


def test_trained_are_the_averaged_weights_where_there_are_any() -> None:
    averaged, plain = run(trainer()), run(trainer(ema_decay=None))
    assert plain.eval_model is plain.objective.model
    assert averaged.eval_model is not averaged.objective.model
    assert not same(dict(averaged.eval_model.named_parameters()), dict(averaged.objective.model.named_parameters()))


def test_the_objective_trains_and_is_left_in_evaluation() -> None:
    made = trainer()
    modes: list[bool] = []
    made.objective.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    made.objective.eval()
    run(made)
    assert all(modes)
    assert not made.objective.training


def test_means_divide_sums_by_counts() -> None:
    output = StepOutput(torch.tensor(6.0), torch.tensor(4.0), {"accuracy": (torch.tensor(1.0), torch.tensor(2.0))})
    assert mean_metrics(output) == {"loss": 1.5, "accuracy": 0.5}


def test_the_parts_of_a_batch_are_equal() -> None:
    assert Plan(batch_size=6, accumulate=3).micro_batch_size == 2
    with pytest.raises(UsageError, match="accumulate 4 does not divide batch_size 6"):
        Plan(batch_size=6, accumulate=4)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "log_every", "save_every"])
def test_plans_need_at_least_one_of_everything(name: str) -> None:
    nothing: dict[str, Any] = {name: 0}
    with pytest.raises(UsageError, match=f"{name} is 0; use at least 1"):
        Plan(**nothing)


def test_no_fewer_than_no_steps_are_left_out() -> None:
    with pytest.raises(UsageError, match="skip_nonfinite is -1; use 0 or more steps"):
        Plan(skip_nonfinite=-1)


class NotedMetrics(MeanGrey):
    """Notes in which steps metrics were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def forward(self, batch: Batch, step: Tensor) -> StepOutput:
        self.asked.append(self.with_metrics)
        return super().forward(batch, step)


def test_metrics_are_asked_for_where_they_are_logged() -> None:
    made = run(trainer(steps=12, objective=NotedMetrics), steps=12)
    assert isinstance(made.objective, NotedMetrics)
    assert [step for step, asked in enumerate(made.objective.asked, 1) if asked] == [5, 10, 12]


def test_optimiser_and_schedule_may_be_replaced() -> None:
    """Plain gradient descent: w ← w - lr·g, where lr is a function of the step, and no gradient is clipped."""
    made = trainer(optimiser=replace(OPTIMISER, clip_grad=1e9), ema_decay=None)
    weights = list(made.objective.model.parameters())
    made.optimizer = torch.optim.SGD(weights, lr=9.0)
    made.lr = lambda step: 0.1 / step
    for step in range(2):
        before = [weight.detach().clone() for weight in weights]
        output = made.objective(batches()(step), torch.tensor(step))
        gradients = torch.autograd.grad(output.loss_sum / output.weight, weights)
        made.train_step(batches()(step), CPU)
        for was, gradient, now in zip(before, gradients, weights, strict=True):
            torch.testing.assert_close(now, was - 0.1 / (step + 1) * gradient)
