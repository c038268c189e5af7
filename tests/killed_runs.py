"""Starts runs that kill themselves with SIGKILL at a given moment. A script, not a test.

    python killed_runs.py MOMENTS.json    {"<name>": {"out": DIR, "method": M, "moment": [...]}}

Everything is imported once, by a run that ends; each of the others is a fork. A moment is
["cell", n]: after n finished cells; ["metrics", n]: at the n-th report of a value;
["write", pattern]: when a file whose path matches is written and not yet in its place;
["receipt", name]: when the output of a cell is there and its receipt is not;
["record", ""]: when the record is there and the run has not returned.
Prints how each ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import small_runs
import torch

from robustdd_bench import executors, files
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.runs import planned
from robustdd_bench.runs.progress.displays import NullReporter


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind, value):
    """A reporter and an executor; whatever else dies is patched."""
    reporter, executor = NullReporter, LocalExecutor()
    if kind == "cell":
        left = [value]

        class Counting(LocalExecutor):
            def submit(self, cell, job):
                done = super().submit(cell, job)
                left[0] -= 1
                if left[0] == 0:
                    die()
                return done

        executor = Counting()
    elif kind == "metrics":

        class Dying(NullReporter):
            calls = 0

            def metrics(self, step, **values):
                super().metrics(step, **values)
                Dying.calls += 1
                if Dying.calls == value:
                    die()

        reporter = Dying
    elif kind == "write":
        replace = os.replace

        def torn(source, target):
            if re.search(value, str(target)):
                die()
            replace(source, target)

        files.os.replace = torn
    elif kind == "receipt":
        sign = executors.Cell.sign

        def unsigned(self, **costs):
            if self.name == value:
                die()
            return sign(self, **costs)

        executors.Cell.sign = unsigned
    elif kind == "record":
        rmtree = shutil.rmtree
        planned.shutil.rmtree = lambda path, **_: die() if path.name == "work" else rmtree(path)
    return reporter, executor


def main():
    torch.set_num_threads(1)
    small_runs.example("mtt")  # imports whatever a run imports when it comes to it
    ended = {}
    for name, job in json.loads(Path(sys.argv[1]).read_text()).items():
        child = os.fork()
        if child == 0:
            reporter, executor = arm(*job["moment"])
            plan = small_runs.plan_of(job["method"])
            small_runs.run(plan, job["out"], reporter=reporter, executor=executor)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended[name] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
