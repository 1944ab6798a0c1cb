"""From stored pixels to the views of a batch."""
