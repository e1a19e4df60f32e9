"""People who were not scanned: new ones, and one person at other ages. Nothing is imported here."""
