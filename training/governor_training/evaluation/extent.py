"""How much an evaluation does: what the tasks that there are allow, said before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from governor.certificate import crossings_needed, level_of
from governor.policies.table import POLICIES
from governor_calibration.fit import CERTIFYING, ENOUGH
from governor_training.environment import Environment, Split, available
from governor_training.evaluation.study import Plan
from governor_training.evaluation.sweep import CALIBRATED, FORECAST, PRUNED, PRUNING, setting_count

CONFIDENCE = 0.95
FITTED = (CALIBRATED, FORECAST)
"""The policies that learn from training tasks."""
FEWEST_CALLS, MOST_CALLS = 1, 4
"""Calls of a task between which the estimate of the requests lies."""
TIMED = ("ungoverned", "threshold", CALIBRATED)
"""The arms that are played through real servers; the last one where there is a gate."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A plan that the environment has the tasks for, and what to say of it."""

    plan: Plan
    says: tuple[str, ...]


def least_to_learn(max_harm: float) -> int:
    """Training tasks below which no gate can be certified: each would have to have a call that is withheld,
    and none of these may do harm."""
    return max(ENOUGH, ceil(crossings_needed(max_harm, level_of(CONFIDENCE, 1)) / CERTIFYING))


def extent(plan: Plan, environment: Environment, *, chosen_split: bool) -> Extent:
    """What of `plan` can be done. `chosen_split`: the user said which tasks are to be played. Raises
    `NotEnoughTasks`."""
    seed, says = plan.seeds[0], []
    learn = available(environment, plan.learn, seed, Split.TRAIN)
    least = least_to_learn(plan.max_harm)
    asked_for = sorted(set(plan.policies or ()) & set(FITTED))
    if learn < min(plan.learn, least) and not asked_for:
        learn = 0
        if plan.policies is None:
            others = tuple(name for name in (*POLICIES, PRUNED) if name not in FITTED)
            plan = replace(plan, policies=others)
            says.append(
                f"{CALIBRATED} and {FORECAST} are left out: they learn from training tasks, and with fewer "
                f"than {least} no gate can be certified (--max-harm {plan.max_harm:g})."
            )
    elif learn < least:
        says.append(
            f"{learn} training tasks are too few for a certificate, which needs {least}: the gate is fitted "
            f"all the same, and withholds nothing under `{CALIBRATED}`."
        )
    tasks, split = _played(replace(plan, learn=learn), environment, chosen_split)
    plan = replace(plan, learn=learn, tasks=tasks, split=split)
    if plan.split is None and not plan.temperature and len(plan.seeds) > 1:
        plan = replace(plan, seeds=plan.seeds[:1])
        says.append("One seed is enough: another would play the same tasks, to the same end.")
    return Extent(plan, (*_intended(plan, environment), *says))


def _played(plan: Plan, environment: Environment, chosen_split: bool) -> tuple[int, Split | None]:
    """How many tasks are played, and of which split; None: of both, since nothing is learned from either."""
    seed = plan.seeds[0]
    if plan.split is Split.TRAIN:
        there = available(environment, plan.learn + plan.tasks, seed, Split.TRAIN)
        return max(0, there - plan.learn), plan.split
    held_out = available(environment, plan.tasks, seed, Split.HELD_OUT)
    if plan.learn or chosen_split or held_out == plan.tasks:
        return held_out, Split.HELD_OUT
    return held_out + available(environment, plan.tasks - held_out, seed, Split.TRAIN), None


def _intended(plan: Plan, environment: Environment) -> Iterator[str]:
    """What will be done, in sentences."""
    kind = {None: "", Split.HELD_OUT: "held-out ", Split.TRAIN: "training "}[plan.split]
    settings, seeds = setting_count(plan.policies), len(plan.seeds)
    learned = f"learns from {plan.learn:,} training tasks, then plays" if plan.learn else "plays"
    names = "all policies" if plan.policies is None else ", ".join(plan.policies)
    yield (
        f"{environment.name}: {learned} {plan.tasks:,} {kind}tasks ({seeds} seed{'s' * (seeds > 1)}) without "
        f"a governor, and under {settings} settings of {names}."
    )
    memory = "" if plan.temperature else ", since what was asked before is answered from memory"
    yield (
        f"That asks upstream about {requests(plan, FEWEST_CALLS, new=False):,} to "
        f"{requests(plan, MOST_CALLS, new=True):,} times (a task of {FEWEST_CALLS} to {MOST_CALLS} calls"
        f"{memory})."
    )
    if plan.timed:
        arms = len(TIMED) if plan.learn else len(TIMED) - 1
        timed = min(plan.timed, plan.tasks)
        yield f"Then {timed:,} tasks go through real servers, {arms} times each, to see how long they take."


def requests(plan: Plan, calls: int, *, new: bool) -> int:
    """About how many requests upstream gets where each task takes so many calls, those for the time left out.
    `new`: the policies ask for what was not asked before.

    A task alone asks for each message, and for a forced answer before and after each call. The true value of
    a call is the rest of the conversation played without it; and a policy that withholds it asks for about
    as much, once for all settings that withhold the same call. Pruning changes the prompt of each later
    message.
    """
    messages = calls + 1
    alone = messages + 2 * calls
    truth = plan.continuations * calls * messages // 2
    swept = 0
    if plan.temperature:
        swept = setting_count(plan.policies) * alone
    elif new:
        pruned = plan.policies is None or PRUNED in plan.policies
        swept = calls * messages + (len(PRUNING) - 1) * calls * pruned
    return plan.learn * alone + plan.tasks * len(plan.seeds) * (alone + truth + swept)
