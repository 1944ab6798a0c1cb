"""L8: one module a verb: its configuration and `main(config)`. The only place where parts meet."""
