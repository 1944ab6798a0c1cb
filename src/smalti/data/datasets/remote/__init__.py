"""Large files, here or at an address."""
