"""What the pages of the board and of reports have in common."""
