"""What files and folders are called in a run's folder, in the store and on a board."""

RECORD_FILE = "record.json"
PLAN_FILE = "plan.json"
SET_FILE = "distilled.safetensors"
SET_PICTURE = "distilled.png"
ROBUSTNESS_PICTURE = "robustness.png"
WITNESSES_FILE = "witnesses.safetensors"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "run.log"
REUSE_FILE = "adopted.json"
"""Of which run a set is reused; the name is the first edition's."""
TEACHER_PREFIX = "teacher."
"""In front of the names of a teacher's tensors in the file of a set."""
LOCK_FILE = ".lock"
"""Its lock is held by who writes in the folder."""

MATRIX_FILE = "transfer.json"
MATRIX_PICTURE = "transfer.png"
PAIRS_FOLDER = "pairs"
"""Of a transfer matrix: what is known of each pair of runs."""

CELLS_FOLDER = "cells"
WORK_FOLDER = "work"
SNAPSHOTS_FOLDER = "snapshots"

STORE_FOLDER = "store"
"""Beside the runs: what they share."""
QUEUE_FOLDER = "queue"
"""Beside the runs: cells that are to be computed, for workers; see
`robustdd_bench.runs.execution.queue`."""
REQUEST_FILE = "request.json"
LEASE_FILE = "lease.jsonl"
EVENTS_FILE = "events.jsonl"
ANSWER_FILE = "answer.json"
NOTES_FILE = "notes.json"
CANCEL_FILE = "cancelled"
RESULTS_FOLDER = "results"
"""On a board: the published runs."""


def is_toml(name: str) -> bool:
    """Whether a word names a file of TOML rather than something registered."""
    return name.lower().endswith(".toml")
