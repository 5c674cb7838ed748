"""Sending through `apprise`, in a process of its own: `process` is what others call, `__main__` that process.

Apart from the worker and the API, because apprise costs 50 MB and a second to load, blocks, can hang, and is code for
a hundred services: see docs/adr/0018.
"""
