"""Reports: what runs did, as one HTML page or as Markdown with pictures."""
