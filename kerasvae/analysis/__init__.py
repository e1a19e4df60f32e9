"""Analysis: what a run is worth, in words and pictures. Nothing is imported here."""
