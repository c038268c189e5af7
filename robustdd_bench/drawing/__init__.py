"""Drawing: axes, figures and what all pages have in common."""
