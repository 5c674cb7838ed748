#!/bin/sh
# Runs in temporalio/admin-tools once the server's port is open: makes the namespace if it is not there. Fails while the
# server is still joining its ring; Compose then runs it again.
set -eu
temporal operator cluster health
temporal operator namespace describe --namespace "$NAMESPACE" >/dev/null 2>&1 ||
  temporal operator namespace create --namespace "$NAMESPACE" --retention "$RETENTION"
