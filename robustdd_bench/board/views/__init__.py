"""What people read of a board: the page, its plots, the tables and the README."""
