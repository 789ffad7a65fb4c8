"""Layers, records of pure functions, and networks composed of them."""
