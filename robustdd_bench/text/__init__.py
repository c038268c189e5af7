"""Text for people: tables as Markdown, CSV and LaTeX, and what a terminal can show."""
