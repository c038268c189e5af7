"""Fast paths: each computes what its naive form computes."""
