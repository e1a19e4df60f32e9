"""What a code means in the image, and what goes with a column of the cohort there. Nothing is imported here."""
