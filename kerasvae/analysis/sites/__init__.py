"""Sites: codes and images without the scanner. Nothing is imported here."""
