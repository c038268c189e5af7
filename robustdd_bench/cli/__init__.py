"""The command line: each module parses, calls a function and prints."""
