#!/bin/sh
# Starts the official server image, which knows the database's password only as a variable.
set -eu
POSTGRES_PWD="$(cat /run/secrets/temporal_database_password)"
export POSTGRES_PWD
exec /etc/temporal/entrypoint.sh
