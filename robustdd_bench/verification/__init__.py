"""Verification: a record held against what is computed again."""
