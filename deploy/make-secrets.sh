#!/usr/bin/env bash
# Makes the secrets that docker-compose.yml reads, one file each: `make-secrets.sh [FOLDER]`. Existing files are kept.
#
# The folder is the owner's alone (0700). The files in it are world-readable on purpose: Compose mounts each one into
# its containers as it is, and they run as users of their own.
set -euo pipefail
umask 077
folder="${1:-secrets}"
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

keep() { # keep NAME VALUE: write the secret unless it is there
  local file="$folder/$1"
  if [[ -s "$file" ]]; then
    echo "kept $file"
  else
    printf '%s' "$2" >"$file.new"
    chmod 444 "$file.new"
    mv "$file.new" "$file"
    echo "made $file"
  fi
}

keep postgres_password "$(random)"
keep temporal_database_password "$(random)"
keep skyfleet_database_password "$(random)"
keep database_url "postgresql://skyfleet:$(<"$folder/skyfleet_database_password")@postgres:5432/skyfleet"
keep admin_token "$(random)"
keep metrics_token "$(random)"
keep grafana_admin_password "$(random)"

# Given by others, so empty until you write them: the keys of the model bucket, and the service-account token of a SkyPilot
# API server of your own.
for name in model_bucket_access_key_id model_bucket_secret_access_key skypilot_token; do
  [[ -e "$folder/$name" ]] || keep "$name" ""
done
