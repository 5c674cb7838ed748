#!/bin/sh
# Runs its arguments with the service-account token of SkyPilot's API server, if there is one. SkyPilot reads it from the
# environment, but in the container's own `docker inspect` would show it.
set -eu
token="${SECRETS:-/run/secrets}/skypilot_token"
if [ -s "$token" ]; then
  SKYPILOT_SERVICE_ACCOUNT_TOKEN="$(cat "$token")"
  export SKYPILOT_SERVICE_ACCOUNT_TOKEN
fi
exec "$@"
