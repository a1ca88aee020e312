# Runs a command as the user postgres when we are root: PostgreSQL refuses to run as root.
if [ "$(id -u)" = 0 ]; then
  exec setpriv --reuid postgres --regid postgres --init-groups "$@"
fi
exec "$@"
