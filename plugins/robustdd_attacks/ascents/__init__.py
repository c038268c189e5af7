"""Ascents of other losses than the cross-entropy, and along other averages of gradients."""
