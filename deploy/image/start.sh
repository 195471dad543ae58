#!/bin/sh
# Start the proxy on the mounted config.yaml, or else on the image's default.yaml if all of the
# environment variables that it names are set. Arguments go to litellm.
set -eu
config=config.yaml
if [ ! -f "$config" ]; then
  config=default.yaml
  missing=
  for name in $(sed -n 's|^[^#]*os\.environ/\([A-Z_]*\).*|\1|p' "$config" | sort -u); do
    printenv "$name" | grep -q . || missing="$missing $name"
  done
  if [ -n "$missing" ]; then
    echo "not set:$missing. Pass each with docker run -e NAME, or mount your own configuration at /app/config.yaml" >&2
    exit 2
  fi
fi
exec litellm --config "$config" --host 0.0.0.0 --port 4000 "$@"
