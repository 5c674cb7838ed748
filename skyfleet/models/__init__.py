"""Reads the models of a bucket: any S3-compatible store."""
