"""Experiments that measure what jaxrnn claims: ``python -m experiments`` runs the tour."""
