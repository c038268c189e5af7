"""Floating-point operations of trajectory matching: experts and student steps."""

from __future__ import annotations

from robustdd_bench.toolkit.operations import Facts, ImageCosts, MakingOperations
from robustdd_bench.toolkit.trajectories.config import TrajectoryConfig
from robustdd_bench.toolkit.trajectories.recipe import ExpertRecipe
from robustdd_bench.toolkit.trajectories.rules import Rules

GUARD = 512 * 10
"""Image steps of the guard of single-step adversarial training, each epoch."""


def expert_operations(recipe: ExpertRecipe, train: int, costs: ImageCosts) -> float:
    """Operations of one expert.

    Args:
        recipe: how it is trained.
        train: training images.
        costs: of its network.
    """
    recipe = recipe.canonical()
    passes = 2 if recipe.gsam_rho else 1
    operations = passes * recipe.epochs * train * costs.step(recipe.flavour, recipe.attack_steps)
    if recipe.flavour == "fast":
        operations += recipe.epochs * (GUARD * costs.pixels + GUARD / 10 * costs.forward)
    return operations + train * costs.forward


def matching_operations(
    config: TrajectoryConfig,
    recipe: ExpertRecipe,
    facts: Facts,
    joint: float = 0.0,
    rules: Rules | None = None,
) -> MakingOperations:
    """Operations of a method that matches trajectories.

    Args:
        config: its configuration.
        recipe: how its experts are trained.
        facts: what it works on.
        joint: further operations of an iteration.
        rules: of the method; by default MTT's.
    """
    rules = rules or Rules()
    if rules.assigned_labels:
        joint += facts.images * facts.input.forward
    batch = config.student_batch
    images = batch if 0 < batch < facts.images else facts.images
    products = facts.input.matched if rules.direct else facts.input.products
    step = images * (facts.input.weights + products)
    return MakingOperations(
        experts=config.experts * expert_operations(recipe, facts.train, facts.network),
        distill=config.iterations * (config.student_steps * step + joint),
    )
