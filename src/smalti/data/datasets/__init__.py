"""Where images lie: one protocol, and one file for each kind of place."""
