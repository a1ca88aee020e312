# Inserts a row ten times a second, and goes on when the server is away for a moment.
while :; do
  "$PSQL" -qAtc "create table if not exists load (at timestamptz default now())" 2> /dev/null \
    && "$PSQL" -qAtc "insert into load default values" && echo inserted
  sleep 0.1
done
