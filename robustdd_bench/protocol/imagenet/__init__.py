"""Tiny ImageNet and ImageNet subsets, as users have them on disk."""
