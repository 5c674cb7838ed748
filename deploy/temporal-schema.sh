#!/bin/sh
# Runs in temporalio/admin-tools before the server: brings Temporal's two schemas to this server's version. Safe to
# repeat: both commands leave what is there already. The databases themselves come from postgres-init.sh.
set -eu
SQL_PASSWORD="$(cat /run/secrets/temporal_database_password)"
export SQL_PASSWORD

migrate() { # migrate DATABASE SCHEMA
  set -- "$2" --plugin postgres12 --ep postgres -p 5432 -u temporal --db "$1"
  schema="$1"
  shift
  temporal-sql-tool "$@" setup-schema -v 0.0
  temporal-sql-tool "$@" update-schema -d "/etc/temporal/schema/postgresql/v12/$schema/versioned"
}

migrate temporal temporal
migrate temporal_visibility visibility
