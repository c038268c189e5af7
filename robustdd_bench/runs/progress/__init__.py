"""What a run shows and keeps while it goes: displays, metrics, images over iterations."""
