"""Published records, and the tables built from them."""
