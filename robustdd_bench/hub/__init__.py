"""Sets on a hub of datasets, Hugging Face's: fetched by `evaluate hub:...`, uploaded by `push`."""
