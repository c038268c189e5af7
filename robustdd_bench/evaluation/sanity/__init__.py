"""Sanity: what speaks against an evaluation, student by student and attack by attack."""

from typing import TYPE_CHECKING

from robustdd_bench.moved import former

if not TYPE_CHECKING:
    __getattr__ = former(__name__, "student_checks")
