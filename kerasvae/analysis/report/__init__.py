"""The report of a run, one page, and its sections. Nothing is imported here."""
