"""The cluster as the driver needs it. All calls of Ray are here, and Ray has no types for mypy."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from robustdd_ray.fleet import Need, NodeFacts

CONNECT_S = 5.0
"""Seconds in which somebody must answer at an address."""
CALL_S = 60.0
"""Seconds in which an actor must answer, over what the call may take."""
LABEL = "ray.io/node-id"
CONCURRENCY = 4
"""Calls that an actor answers at once."""


class ConnectError(Exception):
    """There is no cluster to be had at the address; one line for the user."""


class LostHostError(Exception):
    """An actor was lost, or does not answer."""


class FullStoreError(Exception):
    """Neither the object store nor the disk behind it has room."""


class Endpoint(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def answers(self, timeout_s: float) -> bool:
        """Whether somebody does."""
        with contextlib.suppress(OSError):
            socket.create_connection(self, timeout_s).close()
            return True
        return False


class Handle(NamedTuple):
    """An actor, which may not be there yet."""

    actor: Any
    hello: Any
    """A reference to what it says of itself."""


class Cluster:
    """A connection to a Ray cluster; one a process.

    Args:
        address: "host:port", "ray://host:port", "auto", or "" for a local cluster that ends with
            this process.
        store_bytes: of a local cluster's object store; 0: Ray's choice.

    Raises:
        ConnectError: that cannot be.
    """

    def __init__(self, address: str, store_bytes: int = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a FutureWarning
        import ray

        self._ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "":
            options |= {"address": "local", "include_dashboard": False}
            options |= {"object_store_memory": store_bytes} if store_bytes else {}
        else:
            # "auto" is left to Ray, which then takes the token of this machine's cluster.
            options["address"], address = address, _found(address)
            at = endpoint(address)
            if not at.answers(CONNECT_S):
                raise ConnectError(
                    f"no Ray cluster answers at {address}; see `ray status`, or leave address out "
                    "for a local one"
                )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**options)
        except Exception as error:  # Ray raises RuntimeError, ConnectionError and gRPC's own
            raise ConnectError(_told(error, address)) from error
        self._watched = endpoint(
            address if address.startswith("ray://") else ray.get_runtime_context().gcs_address
        )
        self.node: str = ray.get_runtime_context().get_node_id()
        """The machine by which the driver is connected."""
        from robustdd_ray import host

        ray.cloudpickle.register_pickle_by_value(host)
        self._host = host.Host
        self.address = address or "of this machine"
        """What it is called in messages."""

    def answers(self) -> bool:
        """Whether the head of the cluster is there."""
        return self._watched.answers(2.0)

    def nodes(self) -> list[NodeFacts]:
        """The machines that are alive."""
        return [
            NodeFacts(
                node["NodeID"],
                node["NodeManagerHostname"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
                int(node["Resources"].get("memory", 0)),
            )
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def start(
        self, need: Need, session: str, variables: dict[str, str | None], avoid: Sequence[str]
    ) -> Any:
        """Ask for an actor; it is there when it answers.

        Args:
            need: what it takes.
            session: of the driver.
            variables: see `Host`.
            avoid: machines on which it must not be.
        """
        options: dict[str, Any] = {
            "num_cpus": max(1, need.threads),
            "num_gpus": need.gpus,
            "memory": need.memory,
            "max_concurrency": CONCURRENCY,
            # A lost actor is told to the scheduler, which computes its cell again at most twice.
            # Ray's own retries have no such bound: it tries again what lacks memory until it fits.
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if avoid:
            options["label_selector"] = {LABEL: f"!in({','.join(sorted(avoid))})"}
        actor = self._ray.remote(self._host).options(**options).remote(session, variables)
        return Handle(actor, actor.hello.remote())

    def hello(self, handle: Any, timeout_s: float) -> dict[str, Any] | None:
        """What an actor says of itself; None where it is not there yet.

        Raises:
            LostHostError: it cannot be started.
        """
        try:
            found: dict[str, Any] = self._ray.get(handle.hello, timeout=timeout_s)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except Exception as error:
            raise LostHostError(_first_line(error)) from error
        return found

    def call(self, handle: Any, method: str, *arguments: Any, takes_s: float = 0.0) -> Any:
        """Call a method of an actor's node.

        Args:
            handle: the actor.
            method: of `Node`.
            *arguments: of the method.
            takes_s: what it may take.

        Raises:
            LostHostError: the actor was lost, does not answer, or the method failed.
            FullStoreError: there is no room for arguments or result.
        """
        ref = None
        try:
            ref = handle.actor.call.remote(method, arguments)
            return self._ray.get(ref, timeout=takes_s + CALL_S)
        except Exception as error:
            if _is_full(error):
                raise FullStoreError(_first_line(error)) from error
            if ref is not None and isinstance(error, self._ray.exceptions.GetTimeoutError):
                with contextlib.suppress(Exception):
                    self._ray.cancel(ref)
                raise LostHostError(f"no answer in {takes_s + CALL_S:.0f} s") from error
            raise LostHostError(_first_line(error)) from error

    def put(self, piece: bytes) -> Any:
        """A reference to some bytes in the object store.

        Raises:
            FullStoreError: there is no room for them.
            LostHostError: the cluster does not answer.
        """
        try:
            return self._ray.put(piece)
        except Exception as error:
            if _is_full(error):
                raise FullStoreError(_first_line(error)) from error
            raise LostHostError(_first_line(error)) from error

    def end(self, handle: Any) -> None:
        """Let an actor tidy up, and end it."""
        with contextlib.suppress(LostHostError, FullStoreError):
            self.call(handle, "close")
        self.kill(handle)

    def kill(self, handle: Any) -> None:
        """End an actor, whatever it does."""
        with contextlib.suppress(Exception):
            self._ray.cancel(handle.hello)
        with contextlib.suppress(Exception):
            self._ray.kill(handle.actor, no_restart=True)

    def close(self) -> None:
        """Let the cluster go; a local one ends."""
        with contextlib.suppress(Exception):
            self._ray.shutdown()


def endpoint(address: str) -> Endpoint:
    """Host and port of an address.

    Raises:
        ConnectError: it has none.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ConnectError(
            f"address must be auto, HOST:PORT or ray://HOST:PORT, not {address!r}; without it, a "
            "local cluster is started"
        )
    return Endpoint(host.strip("[]"), int(port))


def _found(address: str) -> str:
    """The address of the cluster that runs here, for "auto"."""
    if address != "auto":
        return address
    from ray._private import services

    try:
        found: str | None = services.canonicalize_bootstrap_address("auto")
    except Exception:
        found = None
    if not found:
        raise ConnectError(
            "no Ray cluster runs on this machine (address=auto); start one with `ray start`, name "
            "it with address=HOST:PORT, or leave address out for a local one"
        )
    return found


def _told(error: Exception, address: str) -> str:
    """Why there is no connection."""
    text = " ".join(str(error).split())
    if "ersion" in text and "Python" in text:
        return (
            f"the cluster at {address} has another Python or Ray, and both must be the same: {text}"
        )
    if "uthenticat" in text or "token" in text:
        return (
            f"the cluster at {address} does not let us in: {text[:300]}; copy the cluster's "
            "~/.ray/auth_token here (`ray get-auth-token`), or set RAY_AUTH_TOKEN"
        )
    text = text[:500] or type(error).__name__
    if not address:
        return f"cannot start a local Ray cluster: {text}"
    # Ray tells neither a lack of the token nor a wrong one.
    hint = "if it asks for a token, set RAY_AUTH_MODE=token, with the cluster's ~/.ray/auth_token"
    return f"cannot connect to the Ray cluster at {address}: {text}; {hint}"


def _is_full(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    cause = getattr(error, "cause", None)
    if cause is not None:
        names |= {kind.__name__ for kind in type(cause).__mro__}
    return bool(names & {"ObjectStoreFullError", "OutOfDiskError"})


def _first_line(error: BaseException) -> str:
    """An exception of Ray's in one line; it tells the trace of the other end before the reason."""
    cause = getattr(error, "cause", None)
    text = str(cause if cause is not None else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if line.startswith("The actor is dead because")] or lines[:1]
    name = type(cause if cause is not None else error).__name__
    return f"{name}: {' '.join(kept)[:300]}" if kept else name


def wait_until_gone(cluster: Cluster, tries: int, pause_s: float) -> None:
    """Return when the head of a cluster has not answered so many times in a row."""
    missed = 0
    while missed < tries:
        missed = 0 if cluster.answers() else missed + 1
        time.sleep(pause_s)
