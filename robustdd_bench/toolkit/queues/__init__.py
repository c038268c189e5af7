"""Matching over a queue of networks in training, as IDM does it (Zhao et al. 2023)."""
