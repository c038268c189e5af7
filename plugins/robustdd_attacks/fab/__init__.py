"""FAB: the fast adaptive boundary attack, and the projections it is made of."""
