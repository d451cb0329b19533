"""Connectors: features of a picture, of any width -> tokens of the backbone; one module each."""
