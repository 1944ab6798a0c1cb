"""The web page of a model and its JSON API."""
