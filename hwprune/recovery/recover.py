"""Pruned candidate -> trained candidate; and recipe -> candidate that was trained while it was pruned."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hwprune import patterns
from hwprune.errors import CandidateFailure, UnknownNameError, UsageError, first_line
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.loop import distillation
from hwprune.recovery.loop.outcome import Outcome
from hwprune.recovery.loop.run import Report, train
from hwprune.recovery.loop.validation import Validator, device_of
from hwprune.recovery.plan import KINDS, Plan, parse
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.recovery.sparsifiers.growing import Growing, Lasso
from hwprune.recovery.sparsifiers.mask_learner import Decision, Gradual, MaskLearner
from hwprune.recovery.sparsifiers.movement import Movement
from hwprune.recovery.sparsifiers.platon import Platon
from hwprune.workload.workload import Workload

MASK_LEARNERS: dict[str, Callable[[Pruner, Recipe, Plan], MaskLearner]] = {
    "gradual": Gradual,
    "growing": Growing,
    "lasso": Lasso,
    "movement": Movement,
    "platon": Platon,
    "soft-movement": lambda pruner, recipe, plan: Movement(pruner, recipe, plan, soft=True),
}
"""The mask learners by name; each decides on masks while a model is trained."""


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A trained candidate, and what its training did.

    Attributes:
        outcome: of the training at the final sparsity.
        deciding: of the training in which sparsity rose, if there was one.
    """

    candidate: Candidate
    outcome: Outcome
    deciding: Outcome | None = None

    @property
    def seconds(self) -> float:
        return self.outcome.seconds + (self.deciding.seconds if self.deciding is not None else 0.0)

    @property
    def examples(self) -> int:
        """Examples that were trained on, each as often as it was."""
        return self.outcome.examples + (self.deciding.examples if self.deciding is not None else 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.to_json(), "deciding": self.deciding.to_json() if self.deciding is not None else None,
            "seconds": self.seconds, "examples": self.examples,
        }  # fmt: skip


def recover(
    workload: Workload | Pruner,
    candidate: Candidate,
    plan: Plan | str | None = None,
    *,
    fit: Callable[[torch.nn.Module], object] | None = None,
    folder: Path | None = None,
    keep_checkpoint: bool = False,
    report: Report | None = None,
) -> Recovered:
    """Train a pruned candidate. The one that is passed is not changed; what it has removed stays removed.

    Args:
        workload: the dense model's (its `Pruner` saves a second tracing); its ``train`` split is trained on, its ``validation``
            split decides which weights are kept.
        plan: or its text, ``finetune:E`` or ``distill:E``.
        fit: instead of a plan: a training loop of your own, ``fit(module)``, which trains in place or returns the module (a
            Lightning or accelerate script, for example). It gets the module in eval mode. Removed weights are zeroed before each
            of its forward passes and after it, and the better of before and after is kept.
        folder: where a checkpoint is kept while it runs.
        keep_checkpoint: leave it there afterwards: who is killed before the result is stored gets it again at once.

    Raises:
        CandidateFailure: (stage ``recover``) it can't be trained.
        UsageError: the plan is none, or is gradual (see `prune_gradually`), or the candidate is of another model.
    """
    pruner = workload if isinstance(workload, Pruner) else Pruner(workload)
    if candidate.fingerprint != pruner.fingerprint:
        raise UsageError(f"the candidate is of another model than workload {pruner.workload.name!r}")
    if fit is not None and plan is not None:
        raise UsageError("a training loop of your own has no plan: give one of them")
    plan = _plan(plan or "finetune:1")
    if plan.kind == "gradual":
        raise UsageError("a gradual plan prunes while it trains: hwprune.prune_gradually(workload, recipe, plan)")
    module = copy.deepcopy(candidate.module)
    held = FixedMask(candidate.masks) if candidate.masks else None
    if fit is not None:
        outcome = _run_own_loop(pruner, module, held, fit)
    else:
        taps = _taps(pruner, module) if plan.features > 0 else []
        outcome = train(
            module, pruner.workload, plan, sparsifier=held, teacher=pruner.graph.module if plan.taught else None, taps=taps,
            validator=validator_of(pruner), folder=folder, report=report, keep_checkpoint=keep_checkpoint,
        )  # fmt: skip
    return Recovered(replace(candidate, module=module), outcome)


def prune_gradually(
    workload: Workload | Pruner,
    recipe: Recipe,
    plan: Plan | str = "gradual:2",
    decider: str | Callable[[Pruner, Recipe, Plan], MaskLearner] = "gradual",
    *,
    folder: Path | None = None,
    keep_checkpoint: bool = False,
    report: Report | None = None,
) -> Recovered:
    """Prune a model while it is trained, then train what is left.

    Sparsity rises from nothing to the recipe's over the first part of the plan; then the model is cut, and the rest of the
    epochs (`Plan.settle`) trains the small one.

    Args:
        decider: a name of `MASK_LEARNERS`, or something that makes a `MaskLearner`.
        folder: where checkpoints are kept while it runs.
        keep_checkpoint: as for `recover`.

    Raises:
        CandidateFailure: (stage ``recover``) it can't be trained.
        UsageError: the recipe or the decider don't fit.
    """
    pruner = workload if isinstance(workload, Pruner) else Pruner(workload)
    plan = _plan(plan)
    if plan.kind != "gradual":
        raise UsageError(f"{plan.text()} is no gradual plan: hwprune.recover trains a candidate by it")
    if isinstance(decider, str) and decider not in MASK_LEARNERS:
        raise UnknownNameError("decider", decider, MASK_LEARNERS)
    private = Pruner(replace(pruner.workload, model=copy.deepcopy(pruner.workload.model)))
    learner = (MASK_LEARNERS[decider] if isinstance(decider, str) else decider)(private, recipe, plan)
    teacher = pruner.graph.module if plan.taught else None
    rising = replace(plan, epochs=plan.epochs * (1 - plan.settle), patience=0)
    first_folder = folder / "rising" if folder is not None else None
    first = train(
        private.graph.module, pruner.workload, rising, sparsifier=learner, teacher=teacher, keep_best=False,
        validator=validator_of(pruner), folder=first_folder, report=report, keep_checkpoint=True,
    )  # fmt: skip
    candidate = decided(pruner, private, recipe, learner.decision)
    validator = validator_of(pruner)
    if plan.settle > 0:
        settling = replace(plan, epochs=plan.epochs * plan.settle, rate=first.rate)
        held = FixedMask(candidate.masks) if candidate.masks else None
        taps = _taps(pruner, candidate.module) if plan.features > 0 else []
        second = train(
            candidate.module, pruner.workload, settling, sparsifier=held, teacher=teacher, taps=taps,
            validator=validator, folder=folder, report=report, keep_checkpoint=keep_checkpoint,
        )  # fmt: skip
    else:
        measured = validator(candidate.module)
        second = Outcome(measured, measured, 0, 0, 0.0, first.rate, 0, "nothing was left for settling")
    if first_folder is not None and not keep_checkpoint:
        shutil.rmtree(first_folder, ignore_errors=True)
    return Recovered(candidate, second, first)


def decided(pruner: Pruner, private: Pruner, recipe: Recipe, decision: Decision) -> Candidate:
    """A decision on a trained copy of the model as a candidate like any other, with a recipe that says what it came to.

    Args:
        private: of the copy, whose weights are taken.
        recipe: names methods, the branches that go, and where tokens go: these are not learned.
    """
    private.forget()
    named = {choice.unit: choice for choice in recipe.choices}
    given = [choice for choice in recipe.choices if choice.pattern == patterns.BRANCH or choice.pattern in patterns.TOKENS]
    choices: list[UnitChoice] = list(given)
    for unit, keep in [*decision.keeps.items(), *decision.masks.items()]:
        gone = 1 - float(keep.double().mean())
        if 0 < gone < 1:
            choices.append(replace(named[unit], sparsity=gone))
    keeps = {unit: keep.cpu() for unit, keep in decision.keeps.items() if not bool(keep.all())}
    keeps |= {
        c.unit: private.options(c.unit, c.pattern, c.method, [c.sparsity])[0].keep for c in given if c.pattern in patterns.TOKENS
    }
    positions = private.graph.positions(keeps)
    masks = {}
    for unit, mask in decision.masks.items():
        masks[unit] = mask.cpu()
        for dim, kept in enumerate(positions.get(unit, ())):
            masks[unit] = masks[unit].index_select(dim, kept)
    candidate = private.prune(Recipe(tuple(choices), "none"), keeps=keeps, masks=masks, orders={})
    return replace(candidate, fingerprint=pruner.fingerprint, template=lambda: pruner.template)


def _run_own_loop(
    pruner: Pruner, module: torch.fx.GraphModule, held: FixedMask | None, fit: Callable[[torch.nn.Module], object]
) -> Outcome:
    """Run the user's own training loop, and keep what it made if that is better."""
    import time

    validator = validator_of(pruner)
    before = validator(module)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    home = device_of(module)
    start = time.monotonic()
    hook = module.register_forward_pre_hook(lambda trained, _: held.hold(trained)) if held is not None else None
    try:
        result = fit(module)
    except Exception as error:  # the user's code may raise anything
        raise CandidateFailure("recover", f"the training loop raised {type(error).__name__}: {error}") from error
    finally:
        if hook is not None:
            hook.remove()
    try:
        if isinstance(result, torch.nn.Module) and result is not module:
            module.load_state_dict(result.state_dict())
        # A loop may leave the model on another device or in another precision.
        module.to(home)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.data = tensor.data.to(state[name].dtype) if name in state else tensor.data
    except RuntimeError as error:
        raise CandidateFailure("recover", f"the training loop returned another model: {first_line(error)}") from error
    if held is not None:
        held.hold(module)
    module.eval()
    after = validator(module)
    best = int(validator.better(after.value, before.value))
    if not best:
        module.load_state_dict(state)
    return Outcome(
        before,
        after if best else before,
        best,
        0,
        time.monotonic() - start,
        0.0,
        best,
        "the training loop has returned"
        if best
        else "what the training loop has made is no better on validation, and is dropped",
    )


def validator_of(pruner: Pruner) -> Validator:
    """Scores on validation; agreement is with the dense model, whether it teaches or not."""
    validator = Validator(pruner.workload)
    validator.teach(pruner.graph.module)
    return validator


def _plan(plan: Plan | str) -> Plan:
    if isinstance(plan, Plan):
        return plan
    parsed = parse(plan)
    if parsed is None:
        raise UsageError(f"{plan!r} is no training plan: one of {', '.join(f'{kind}:EPOCHS' for kind in KINDS)}")
    return parsed


def _taps(pruner: Pruner, module: torch.fx.GraphModule) -> list[str]:
    """Sums of residual branches: where one block ends and the next one begins."""
    names = list(dict.fromkeys(branch.name for branch in pruner.graph.branches))
    return distillation.shared_nodes(module, pruner.graph.module, pruner.workload.example_inputs, names)
