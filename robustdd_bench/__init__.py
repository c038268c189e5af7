"""robustdd-bench: a benchmark for robust dataset distillation.

Importing this package imports neither torch nor any method: everything heavy is loaded on use.
"""

__version__ = "0.1.0"
