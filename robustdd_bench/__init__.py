"""robustdd-bench: a benchmark for robust dataset distillation.

Importing this package imports neither torch nor any method: everything heavy is loaded on use.
"""

from robustdd_bench.moved import find_old_names

__version__ = "0.1.0"

find_old_names()
