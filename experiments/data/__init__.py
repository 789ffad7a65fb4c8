"""The data that experiments train on: generated, carried by a library, or read from a file."""
