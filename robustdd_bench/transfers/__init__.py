"""Transfer matrices: examples made on the students of one run, judged on those of another."""
