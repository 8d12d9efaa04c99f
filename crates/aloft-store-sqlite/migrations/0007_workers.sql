-- Workers, and whether anything was heard of them. Small; written when one says that it lives.
CREATE TABLE workers (
    id      TEXT NOT NULL PRIMARY KEY,
    session INTEGER NOT NULL,               -- the bits of a random u64
    beat    INTEGER NOT NULL,
    expired INTEGER NOT NULL,
    body    BLOB NOT NULL                   -- AboutWorker as JSON
) STRICT, WITHOUT ROWID;
