"""What each sanity check guards against, in a sentence for readers of a board."""

from __future__ import annotations

from collections.abc import Mapping

CHECK_MEANINGS: Mapping[str, str] = {
    "eval mode": "No layer is in training mode, where an output depends on the rest of its batch.",
    "deterministic forward": "Four passes over the same images give the same outputs: a random "
    "network wastes an attack's steps and only looks robust.",
    "outputs are logits": "Outputs are not probabilities, whose gradients vanish.",
    "clean accuracy reproduces": "A pass at another batch size gives the recorded outcomes.",
    "input gradient": "The gradient reaches the pixels and is not exactly zero for most examples: "
    "masked gradients blind an attack and protect nobody.",
    "attacks stay in the threat model": "Every example that counts as broken is finite, within eps "
    "and within [0,1].",
    "stronger attacks are stronger": "No attack leaves clearly more standing than a weaker one.",
    "robust implies clean": "No example is right under attack and wrong without.",
    "unconstrained attack succeeds": "An attack that may turn any image grey breaks nearly all: "
    "what survives it is not robust, the attack is broken.",
    "gradient-free attacks are not better": "Attacks that use no gradient break hardly anything "
    "that gradient attacks left: else the gradients are masked.",
    "more steps change little": "Twice the steps of the strongest attack break hardly more: the "
    "suite has converged.",
}
