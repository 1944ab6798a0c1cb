"""L3: images to visual tokens and back."""
