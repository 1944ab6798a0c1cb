"""L0: contracts, configuration, randomness, files, logs and errors. Imports nothing else of smalti."""
