#!/bin/sh
# The entry of the serving image; arguments go to api.py. SageMaker starts an image with the argument `serve`.
if [ "${1:-}" = serve ]; then shift; fi
exec python api.py --host 0.0.0.0 "$@"
