"""A page on this machine to search with."""
