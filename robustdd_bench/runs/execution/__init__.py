"""Cells on executors: which are ready, where they are computed, and when to stop."""
