"""Records in, numbers out. Pure: no clock, no file, no network."""
