"""The class of Ray's actors. It travels as source, so a machine without the package can say so.

Nothing but Python's own modules may be used here outside of the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Host:
    """Runs a `robustdd_ray.node.Node` in an actor.

    Args:
        session: tells the folders of one driver from those of another.
        variables: of the environment: what the worker gets beside what is there; None: not.
    """

    def __init__(self, session: str, variables: dict[str, str | None]) -> None:
        import socket

        import ray

        self._node: Any = None
        self.about = {
            "node": ray.get_runtime_context().get_node_id(),
            "name": socket.gethostname(),
        }
        try:
            from robustdd_ray.node import Node

            self._node = Node(session, self.about["node"], variables, ray.get)
        except Exception as error:
            self.about["problem"] = f"{type(error).__name__}: {error}"

    def hello(self) -> dict[str, Any]:
        """Which machine this is, and what is installed there or why nothing can be computed."""
        if self._node is None:
            return self.about
        return {**self.about, **self._node.hello()}

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of the node."""
        return getattr(self._node, method)(*arguments)
