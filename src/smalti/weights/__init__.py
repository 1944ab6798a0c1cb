"""Reading weights of other programs without running code in their files, and renaming them to our parameters."""
