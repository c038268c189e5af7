"""What the commands share: arguments, output, the session, groups."""
