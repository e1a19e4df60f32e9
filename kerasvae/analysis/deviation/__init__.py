"""Who deviates from what is expected, by how much and where. Nothing is imported here."""
