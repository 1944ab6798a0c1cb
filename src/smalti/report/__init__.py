"""L7: one self-contained HTML page about one or more runs."""
