"""Makes the shop's database if it is not there."""

import os
import sqlite3

database = os.environ["DATABASE"]
with sqlite3.connect(database) as connection:
    connection.execute("create table if not exists visits (at text default current_timestamp)")
print(f"database {database} is up to date")
