"""L6: what the trained parts are worth, in numbers."""
