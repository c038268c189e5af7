"""Students lent to attacks: an attack holds a copy, and the network that judges stays out of reach.

A hook, a patched `forward`, a changed buffer or a child that was exchanged stays on the copy. What
an attack does to the classes of a student, or to the functions they call, is put back and named
(`robustdd_bench.guard`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.evaluation.prediction import frozen
from robustdd_bench.guard import guard, plain_text, told
from robustdd_bench.guard.patches import Patches
from robustdd_bench.seeds import isolated_rng, seeded_globals


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through a network."""
    counter = [0]

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counter[0] += len(inputs[0])

    hook = model.register_forward_pre_hook(count)
    try:
        yield counter
    finally:
        hook.remove()


@contextlib.contextmanager
def lending(
    plugin: str, name: str, models: Sequence[nn.Module], seed: int
) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Run code of an attack: name it in errors, and see that it changes nothing for others.

    Args:
        plugin: where it comes from.
        name: its name.
        models: the students it attacks.
        seed: seed of the global generators within.

    Yields:
        What gives the attack its copy of a network, frozen and in eval mode, always the same one.

    Raises:
        UsageError: the attack says that it cannot be used so.
        PluginError: it raised something else, or changed the weights of its copy.
    """
    who = f"attack {name!r} of plugin {plugin!r}"
    copies: dict[int, nn.Module] = {}
    try:
        with contextlib.ExitStack() as stack:

            def lent(model: nn.Module) -> nn.Module:
                if id(model) not in copies:
                    copies[id(model)] = stack.enter_context(frozen(_copy(model)))
                return copies[id(model)]

            stack.enter_context(torch.enable_grad())
            stack.enter_context(isolated_rng(seed))
            stack.enter_context(seeded_globals(seed))
            # Innermost, so that nothing is put back before it was looked at.
            stack.enter_context(guard(plugin, f"attack {name!r}", patches=Patches(models)))
            yield lent
    except PluginError:
        raise
    except UsageError as error:  # a norm it does not know, a package that is missing
        raise UsageError(f"{who}: {plain_text(error)}") from error
    except Exception as error:
        raise PluginError(f"{who} failed: {told(error)}") from error
    for model in models:
        if id(model) in copies:
            _same_weights(model, copies[id(model)], who)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise PluginError(
            f"the network {type(model).__name__} cannot be copied for an attack: copy.deepcopy "
            f"ends in {told(error)}"
        ) from error


def _same_weights(model: nn.Module, lent: nn.Module, who: str) -> None:
    """Raise PluginError if an attack has changed its copy of a student."""
    try:
        after = _state(lent)
    except Exception as error:
        raise PluginError(f"{who} changed the student: {told(error)}") from error
    for key, value in _state(model).items():
        now = after.get(key)
        if (
            now is None
            or (now.shape, now.dtype, now.device) != (value.shape, value.dtype, value.device)
            or not torch.allclose(value, now, rtol=0, atol=0, equal_nan=True)
        ):
            raise PluginError(f"{who} changed the student's weights ({key})")


def _state(model: nn.Module) -> dict[str, Tensor]:
    # Of the class: an attack may have put other functions on its copy.
    parameters, buffers = nn.Module.named_parameters(model), nn.Module.named_buffers(model)
    return {**dict(parameters), **dict(buffers)}
