#!/bin/sh
# The entrypoint of a container: regrow as process 1. It reaps what nobody waits for, passes
# signals on, and ends in order at `docker stop` (SIGTERM), dependents first.
#
#   COPY regrow /usr/local/bin/
#   COPY services/ /etc/regrow/services/
#   COPY container-entrypoint.sh /
#   ENTRYPOINT ["/container-entrypoint.sh"]
exec /usr/local/bin/regrow daemon "$@"
