-- Workers, and whether anything was heard of them. Small; written when one says that it lives.
CREATE TABLE workers (
    id      TEXT COLLATE "C" PRIMARY KEY,
    session BIGINT NOT NULL,                    -- the bits of a random u64
    beat    BIGINT NOT NULL,
    expired BOOLEAN NOT NULL,
    body    BYTEA NOT NULL                      -- AboutWorker
) WITH (fillfactor = 50);
