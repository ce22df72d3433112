#!/usr/bin/env bash
# Makes a certificate and tokens in docker/secrets, for docker/compose.secure.yaml and docker/kubernetes/overlays/secure:
#
#   docker/secrets.sh NAME…
#
# The names are those by which clients reach the servers, such as affinity.example. The certificate is its own authority
# (ca.crt is a copy of it); one of your authority goes in the same files. Changes nothing that exists already.
set -euo pipefail
folder=$(dirname "$0")/secrets
if [ -e "$folder" ]; then echo "error: $folder exists already" >&2; exit 1; fi

# Other users of this machine cannot enter the folder; in it, containers with users of their own can read the files.
mkdir -m 700 "$folder"
mkdir -m 755 "$folder/server" "$folder/prometheus"
umask 022

names=DNS:server,DNS:server-cuda,DNS:localhost,IP:127.0.0.1 # the services of compose.yaml, and this machine
for name in "$@"; do names+=,DNS:$name; done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=affinity \
    -addext "subjectAltName=$names" -keyout "$folder/server/tls.key" -out "$folder/server/tls.crt" 2>/dev/null
chmod 644 "$folder/server/tls.key"
cp "$folder/server/tls.crt" "$folder/ca.crt"
cp "$folder/server/tls.crt" "$folder/prometheus/ca.crt"

# The server needs only the digests of the tokens
for client in client prometheus; do
    token=$(openssl rand -hex 32)
    printf %s "$token" > "$folder/$client-token"
    printf '%s: sha256:%s\n' "$client" "$(printf %s "$token" | openssl dgst -sha256 -r | cut -d ' ' -f 1)"
done > "$folder/server/tokens"
mv "$folder/prometheus-token" "$folder/prometheus/token"
echo "$folder: a certificate for ${names//DNS:/}, and the token of a client in client-token"
