"""What a server says of itself: its metrics endpoint and its identity. Knows nothing of a load."""
