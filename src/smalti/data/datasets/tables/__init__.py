"""Data sets in Parquet and Arrow files."""
