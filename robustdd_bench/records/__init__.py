"""What a run is to do, and what it says that it did."""
