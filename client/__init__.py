"""Measure a server of large language models: load, clock, records, metrics, scores."""
