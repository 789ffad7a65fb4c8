"""Reservoirs: placeholder docstring replaced below."""
