"""Runs: what is planned, how it is executed and resumed, and the record it leaves."""
