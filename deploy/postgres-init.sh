#!/bin/sh
# Runs once, when the database cluster is made (docker-entrypoint-initdb.d of the official image): one role and its own
# databases for Skyfleet, one for Temporal. Neither can read the other's, and neither is a superuser.
set -eu
secrets="${SECRETS:-/run/secrets}"

psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet \
  -v skyfleet_password="$(cat "$secrets/skyfleet_database_password")" \
  -v temporal_password="$(cat "$secrets/temporal_database_password")" <<'SQL'
CREATE ROLE skyfleet LOGIN PASSWORD :'skyfleet_password';
CREATE ROLE temporal LOGIN PASSWORD :'temporal_password';
CREATE DATABASE skyfleet OWNER skyfleet;
CREATE DATABASE temporal OWNER temporal;
CREATE DATABASE temporal_visibility OWNER temporal;
REVOKE CONNECT ON DATABASE skyfleet, temporal, temporal_visibility FROM PUBLIC;
SQL
