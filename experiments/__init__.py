"""Experiments that measure what jaxrnn claims: ``python -m experiments`` runs the tour."""

import os

# LAPACK's threads wait for each other at each small product, very long on a machine that does
# other work too. It reads this variable when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
