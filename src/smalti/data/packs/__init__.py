"""Prepared data sets: written by `smalti prepare`, read by memory map."""
