"""What registered things are called, and what is installed."""
