"""What the harness registers itself, what names may be, and what is installed."""
