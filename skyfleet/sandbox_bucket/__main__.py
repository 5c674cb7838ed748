"""`python -m skyfleet.sandbox_bucket`: the sandbox's model bucket, in its own process."""

from __future__ import annotations

import argparse
import logging
import sys

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import make_server

from skyfleet.sandbox_bucket.models import objects


def main() -> int:
    """Fill the store and serve it on loopback, until a signal ends the process; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m skyfleet.sandbox_bucket", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bucket", default="models")
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request

    store = create_backend_app("s3")
    client = store.test_client()
    # Filled before it listens: whoever reaches it finds all of it.
    for path, content in (
        (f"/{arguments.bucket}", b""),
        *((f"/{arguments.bucket}/{key}", it) for key, it in objects()),
    ):
        answer = client.put(path, data=content)
        if answer.status_code != 200:
            print(f"sandbox bucket: {path} answered {answer.status}", file=sys.stderr)
            return 1
    server = make_server("127.0.0.1", arguments.port, store, threaded=True)
    print(f"model bucket (sandbox) at {arguments.bucket}, port {server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
