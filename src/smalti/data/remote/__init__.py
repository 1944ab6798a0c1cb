"""Large files here or at an address, through a bounded cache."""
