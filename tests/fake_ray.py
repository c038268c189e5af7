"""Ray's driver on a cluster that is made up: nodes in its process, with real worker processes.

The address says what goes wrong.
"""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace

from robustdd_ray import driver
from robustdd_ray.cluster import ConnectError, FullStoreError, LostHostError
from robustdd_ray.fleet import NodeFacts
from robustdd_ray.node import Node

NODES = [NodeFacts(f"{i}" * 20, f"host{i}", 1, 0, 4 * 2**30) for i in range(2)]


class FakeCluster:
    def __init__(self, address, store_bytes):
        if address == "nowhere":
            raise ConnectError("no Ray cluster answers at nowhere")
        self.address, self._polls, self._began = address, 0, 0
        self._reads = 0
        self._hosts: dict[str, list] = {node.id: [] for node in NODES}
        self._lock = threading.Lock()

    def answers(self):
        return not (self.address == "gone" and self._began)

    def nodes(self):
        return NODES

    def start(self, need, session, variables, avoid):
        with self._lock:
            free = [node for node in NODES if node.id not in avoid and not self._hosts[node.id]]
            facts = free[0] if free else None
            host = SimpleNamespace(facts=facts, node=None, alive=True, doomed=False)
            if facts is not None:
                self._hosts[facts.id].append(host)
                host.node = Node(session, facts.id, variables, lambda ref: ref)
        return host

    def hello(self, handle, timeout_s):
        if handle.node is None:
            time.sleep(0.1)
            return None
        about = {"node": handle.facts.id, "name": handle.facts.name, **handle.node.hello()}
        if self.address == "differ" or (self.address == "differs" and handle.facts is NODES[0]):
            about["fingerprint"] = {**about["fingerprint"], "torch": "9.9", "plugin x": "x 1"}
        return about

    def call(self, handle, method, *arguments, takes_s=0.0):
        if not handle.alive:
            raise LostHostError("ActorDiedError: it is dead")
        if method == "begin":
            self._began += 1
            self._note(begin=arguments[0]["cell"], reads=[path for path, *_ in arguments[1]])
        if method == "poll" and self.address == "lost":
            self._polls += 1
            if self._polls in (1, 3):
                self.kill(handle)
                raise LostHostError("ActorDiedError: its machine was lost")
        found = getattr(handle.node, method)(*arguments)
        if method == "missing" and self.address == "full":
            found = [sha256 for _, sha256, _ in arguments[0]]
        if method == "poll" and self.address == "checkpoint" and found["checkpoint"]:
            self.address = "plain"
            handle.doomed = True
        elif handle.doomed and method == "poll":
            self.kill(handle)
            raise LostHostError("ActorDiedError: its machine was lost")
        if method == "read" and self.address == "damaged":
            self._reads += 1
            if self._reads == 2:
                return bytes([found[0] ^ 1]) + found[1:]
        return found

    def put(self, piece):
        self._note(put=len(piece))
        if self.address == "full":
            raise FullStoreError("ObjectStoreFullError: no room")
        return piece

    def _note(self, **fields):
        with open(os.environ["FAKE_RAY_LOG"], "a") as file:
            file.write(json.dumps(fields) + "\n")

    def kill(self, handle):
        with self._lock:
            handle.alive = False
            for hosts in self._hosts.values():
                if handle in hosts:
                    hosts.remove(handle)
        if handle.node is not None:
            node, handle.node = handle.node, None
            node.close()

    end = kill

    def close(self):
        return


driver.Cluster = FakeCluster
driver.GONE_S = 0.1
if os.environ.get("FAKE_RAY_KEEP_S"):
    from robustdd_ray import node as node_module

    node_module.KEEP_S = float(os.environ["FAKE_RAY_KEEP_S"])
main = driver.main
