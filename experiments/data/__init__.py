"""The data that experiments train on: generated, from a library, or read from a file."""
