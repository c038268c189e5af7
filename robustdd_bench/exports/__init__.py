"""Distilled sets in the layouts of other codes, with a card that says what they are."""
