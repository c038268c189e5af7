"""Trajectory matching: experts, the exact gradient through training, the loop."""
