"""The local cloud: a stand-in for real clouds that runs as its own process, with its own ledger.

`python -m skyfleet.clouds.local --data DIR --port N` is the cloud (`server` documents its HTTP API),
`client.LocalCloud` the `Cloud` that talks to it. Nothing in here pretends to be a GPU: all that it returns says
`sandbox`.
"""
