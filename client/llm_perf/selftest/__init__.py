"""The client proves itself against a server that does nothing: its cost, its stamps' exactness."""
