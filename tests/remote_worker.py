"""A worker in another process: reads lines {"message", "cell"} and runs them. No test."""

from __future__ import annotations

import json
import sys

import small_runs

from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.work import run_remote

for line in sys.stdin:
    job = json.loads(line)
    run_remote(job["message"], job["cell"], small_runs.registry(), NullReporter())
    print("done", flush=True)
