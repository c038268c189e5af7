"""A Ray cluster on this machine, in a process of its own: commands on stdin, JSON on stdout.

Each machine is a raylet with a folder for temporary files of its own: none sees those of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

STORE = 80 * 2**20


class Machines:
    """The other end: starts the process, and asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dead = folder, set()
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self.address = self._ask("address")

    def _ask(self, *command: str) -> str:
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def add(self, name: str, **variables: str) -> Path:
        """Add a machine; its folder."""
        self._ask("add", name, json.dumps(variables))
        return self.folder / name

    def kill(self, name: str) -> None:
        """Kill a machine's raylet."""
        self.dead.add(name)
        self._ask("kill", name)

    def kill_head(self) -> None:
        """Kill what keeps the cluster together."""
        self._ask("kill-head")

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.stdout.close()


def _serve(folder: Path, out) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    nodes = {}
    for line in sys.stdin:
        command, *words = json.loads(line)
        answer = ""
        if command == "address":
            answer = cluster.address
        elif command == "add":
            name, variables = words[0], json.loads(words[1])
            place = folder / name
            place.mkdir()
            variables |= {"TMPDIR": str(place), "RAY_AUTH_MODE": "disabled"}
            nodes[name] = cluster.add_node(
                num_cpus=1, object_store_memory=STORE, env_vars={**os.environ, **variables}
            )
        elif command == "kill":
            cluster.remove_node(nodes.pop(words[0]), allow_graceful=False)
        else:
            for process in cluster.head_node.all_processes["gcs_server"]:
                process.process.kill()
        out.write(json.dumps(answer) + "\n")
        out.flush()
    cluster.shutdown()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    _serve(Path(sys.argv[1]), answers)
