"""The ways to serve a cell, one module each; :mod:`deploy.backend` is the seam."""
