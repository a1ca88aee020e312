# Makes PostgreSQL's folder unless it is there.
set -e
mkdir -p "$DATA"
if [ -s "$DATA/pg/PG_VERSION" ]; then
  exit 0
fi
mkdir -p "$DATA/pg"
chmod 700 "$DATA/pg"
if [ "$(id -u)" = 0 ]; then
  chown postgres "$DATA/pg"
fi
exec sh as-postgres.sh "$PG_BIN/initdb" --no-sync --auth trust --username postgres --pgdata "$DATA/pg"
