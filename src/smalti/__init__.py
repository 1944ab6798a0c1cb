"""smalti: BEiT from scratch, both stages, on anyone's images.

Importing the package does nothing but define the version; every part is imported from its own module.
"""

__version__ = "0.1.0"
