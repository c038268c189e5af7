"""Many runs from one file: planned, estimated, executed, shown."""
