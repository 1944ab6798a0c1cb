"""Several rounds of pretraining as one run; each predicts clusters of the features of the one before."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from smalti.core.errors import StoppedError
from smalti.data.load import InMemoryData
from smalti.distributed.collectives import from_rank0
from smalti.runs import train_tokenizer
from smalti.runs.folder import ROUNDS, finished_result, is_run, read_config
from smalti.runs.pretrain_config import Pretrain
from smalti.runs.session import Session
from smalti.runs.train_tokenizer_config import TrainTokenizer
from smalti.runs.training_run import TrainingRun
from smalti.tokenizers.kmeans_features import KMeansFeatures
from smalti.tokenizers.teacher_features import FIT_IMAGES
from smalti.training.targets import Tokens

R = TypeVar("R", bound=TrainingRun)


def run_earlier_rounds(
    config: Pretrain, session: Session, images: InMemoryData | None, pretrain: Callable[..., dict[str, Any]]
) -> Pretrain:
    """The configuration of the last of several rounds, an ordinary run, once those before it are complete.

    They are in the folder `rounds` of the run, each with the tokens that are made of it. Each goes on by itself from
    where it was, so that the whole does. An even share of the steps is for each round.

    Args:
        pretrain: `pretrain.main`, which runs each round.
    """
    place = f"{config.out}/{ROUNDS}"
    tokenizer, target, init_from, left = config.tokenizer, config.target, config.init_from, config.plan.steps
    for number in range(1, config.rounds):
        plan = replace(config.plan, steps=config.plan.steps // config.rounds)
        first = replace(config, rounds=1, tokenizer=tokenizer, target=target, init_from=init_from, plan=plan)
        first = _resumed_config(replace(first, out=f"{place}/{number}"))
        session.log.say(f"round {number} of {config.rounds}: {first.out}")
        _run_or_resume(pretrain, first, session, images)
        left -= first.plan.steps
        tokens = TrainTokenizer(
            data=config.data,
            out=f"{place}/{number}-tokens",
            precision=config.precision,
            device=config.device,
            seed=config.seed,
            ranks=config.ranks,
            tokenizer=KMeansFeatures(first.out),
            init_images=FIT_IMAGES,
        )
        tokens = _resumed_config(tokens)
        _run_or_resume(train_tokenizer.main, tokens, session, images)
        tokenizer, init_from = tokens.out, first.out if config.rounds_go_on else ""
        target = target if isinstance(target, Tokens) else Tokens()
        config = replace(config, freeze_backbone_steps=0)
    session.log.say(f"round {config.rounds} of {config.rounds}: {config.out}")
    plan = replace(config.plan, steps=max(1, left))
    return replace(config, rounds=1, tokenizer=tokenizer, target=target, init_from=init_from, plan=plan)


def _resumed_config(config: R) -> R:
    """The configuration of the run that is already in the folder, to be resumed; else the given one."""
    return replace(read_config(config.out, type(config)), out=config.out) if is_run(config.out) else config


def _run_or_resume(run: Callable[..., dict[str, Any]], config: TrainingRun, session: Session, images: Any) -> None:
    """Run an earlier round, or resume it; nothing where it is finished."""
    begun = is_run(config.out)
    if begun and from_rank0(lambda: finished_result(config.out, config, config)) is not None:
        return
    try:
        run(config, resume=begun, allow_inexact=session.allow_inexact, images=images, compute=session.compute)
    except StoppedError as stop:
        fix = stop.fix.replace(shlex.quote(config.out), shlex.quote(str(session.folder.path)))
        raise StoppedError(stop.what, cause=stop.cause, fix=fix, exit_code=stop.exit_code) from stop
