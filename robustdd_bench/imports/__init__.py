"""Distilled sets in the formats of others, read into ours. Nothing is guessed, nothing executed."""
