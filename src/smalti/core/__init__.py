"""L0: contracts, configuration, randomness, files, logs and errors. It imports no other part of smalti."""
