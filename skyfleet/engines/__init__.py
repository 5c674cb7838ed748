"""Inference engines: how each is started, checked, read and kept from unsafe arguments.

Standard library only, and Python 3.10 syntax: the node agent carries this package onto bare machines.
"""
