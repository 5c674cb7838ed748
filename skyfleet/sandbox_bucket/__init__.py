"""The embedded stack's model bucket: an S3 store in a process of its own (moto's), with models too small to be of use.

Nothing in it is kept: it is filled anew at each start, with the same bytes.
"""
