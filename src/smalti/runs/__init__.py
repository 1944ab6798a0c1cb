"""L8: one module for each command, with its configuration and `main(config)`. Only this layer combines the others."""
