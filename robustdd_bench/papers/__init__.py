"""Tables and figures of any runs, for a paper: which runs are meant, and how they are shown."""
