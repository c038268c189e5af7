"""A pull request that submits runs, looked through without checking it out."""
