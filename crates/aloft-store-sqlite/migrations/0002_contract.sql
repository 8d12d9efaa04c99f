-- The whole run contract: queues and limits, the cache, conditions, relations.

-- What an action waits in and counts against. `open_children` and `counted` are kept by the writer.
ALTER TABLE actions ADD COLUMN queue TEXT;                              -- of a task
ALTER TABLE actions ADD COLUMN open_children INTEGER NOT NULL DEFAULT 0;
ALTER TABLE actions ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;      -- 1 while it counts against limits
ALTER TABLE actions ADD COLUMN asks_memory INTEGER NOT NULL DEFAULT 0;
ALTER TABLE actions ADD COLUMN asks_cpu INTEGER NOT NULL DEFAULT 0;
ALTER TABLE actions ADD COLUMN asks_gpu INTEGER NOT NULL DEFAULT 0;
UPDATE actions SET queue = 'default' WHERE kind = 1;
UPDATE actions SET open_children =
    (SELECT count(*) FROM actions c WHERE c.run_id = actions.run_id AND c.parent = actions.name AND c.ended_at IS NULL);
UPDATE actions SET counted = 1 WHERE worker IS NOT NULL AND open_children = 0;
DROP INDEX actions_ready;
CREATE INDEX actions_ready ON actions (run_id, queue, ready_at, depth DESC) WHERE ready_at IS NOT NULL;
CREATE INDEX actions_ready_next ON actions (ready_at) WHERE ready_at IS NOT NULL;
CREATE INDEX actions_counted_of_run ON actions (run_id) WHERE counted = 1;
CREATE INDEX actions_counted_of_queue ON actions (queue) WHERE counted = 1;
CREATE INDEX actions_waiting ON actions (queue) WHERE ended_at IS NULL AND worker IS NULL AND queue IS NOT NULL;

-- The lookup that is to come, and what it waits for.
ALTER TABLE actions ADD COLUMN lookup_at INTEGER;                       -- when to look; NULL while it waits or is done
ALTER TABLE actions ADD COLUMN cache_key TEXT;                          -- while a lookup is to come
CREATE INDEX actions_lookup ON actions (lookup_at) WHERE lookup_at IS NOT NULL;
CREATE INDEX actions_cache_key ON actions (cache_key) WHERE cache_key IS NOT NULL;

-- Conditions that ask for a call, from when on.
ALTER TABLE actions ADD COLUMN call_at INTEGER;
CREATE INDEX actions_call ON actions (call_at) WHERE call_at IS NOT NULL;

-- A run is started once its root has been handed out; it waits or runs until that has ended.
ALTER TABLE runs ADD COLUMN max_actions INTEGER;
ALTER TABLE runs ADD COLUMN started INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN queue TEXT NOT NULL DEFAULT 'default';      -- of its root
ALTER TABLE runs ADD COLUMN related_to TEXT;                            -- name of the run it was made from, same scope
UPDATE runs SET ended = 1
    WHERE EXISTS (SELECT 1 FROM actions a WHERE a.run_id = runs.id AND a.name = 'a0' AND a.ended_at IS NOT NULL);
UPDATE runs SET started = 1
    WHERE EXISTS (SELECT 1 FROM actions a WHERE a.run_id = runs.id AND a.name = 'a0' AND a.worker IS NOT NULL);
CREATE INDEX runs_in_flight ON runs (queue) WHERE started = 1 AND ended = 0;
CREATE INDEX runs_related ON runs (org, project, domain, related_to) WHERE related_to IS NOT NULL;

CREATE TABLE cache_entries (
    org         TEXT NOT NULL,
    project     TEXT NOT NULL,
    domain      TEXT NOT NULL,
    key         TEXT NOT NULL,
    updated_at  INTEGER NOT NULL,
    body        BLOB NOT NULL,              -- CacheEntry as JSON
    PRIMARY KEY (org, project, key, domain)
) STRICT, WITHOUT ROWID;

CREATE TABLE cache_reservations (
    org         TEXT NOT NULL,
    project     TEXT NOT NULL,
    domain      TEXT NOT NULL,              -- empty for keys shared by all domains of the project
    key         TEXT NOT NULL,
    body        BLOB NOT NULL,              -- Reservation as JSON
    PRIMARY KEY (org, project, key, domain)
) STRICT, WITHOUT ROWID;
