-- The engine on Postgres. Times are microseconds since the epoch; texts compare by their bytes.
--
-- Who may lock what, in which order: runs by number, then cache keys, then rows of `live` that wait for a cache key by number,
-- then the one row of `feed`, which orders commits. Nothing is locked after it that another commit could hold.

CREATE TABLE runs (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org         TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    seq         BIGINT NOT NULL,                -- number of the last event of its log
    made        BIGINT NOT NULL,                -- how many actions it has had
    at          BIGINT NOT NULL,                -- time of its last event
    created_at  BIGINT NOT NULL,
    created_by  TEXT COLLATE "C" NOT NULL,
    source      BIGINT NOT NULL,
    queue       TEXT COLLATE "C" NOT NULL,      -- of its root
    max_actions BIGINT,
    in_flight   BIGINT NOT NULL,                -- actions that count against limits
    started     BOOLEAN NOT NULL,               -- whether its root has been handed out
    ended       BOOLEAN NOT NULL,
    related_to  TEXT COLLATE "C",               -- name of the run it was made from, same scope
    info        BYTEA NOT NULL                  -- RunInfo
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX runs_by_name ON runs (org, project, domain, name);
CREATE INDEX runs_related ON runs (org, project, domain, related_to) WHERE related_to IS NOT NULL;

-- Every action. What changes in a life is not indexed, so that most changes rewrite one row and no index.
CREATE TABLE actions (
    id          BIGINT PRIMARY KEY,             -- number of the run * 2^24 + place in the order of creation
    run_id      BIGINT NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    parent      TEXT COLLATE "C",
    grp         TEXT COLLATE "C" NOT NULL,
    kind        BIGINT NOT NULL,
    phase       BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    started_at  BIGINT,
    ended_at    BIGINT,
    duration_ms BIGINT,
    ended_above BOOLEAN NOT NULL,               -- whether it ended because one above it did
    attempts    BIGINT NOT NULL,
    cache_status TEXT COLLATE "C" NOT NULL,
    task_project TEXT COLLATE "C",
    task_domain TEXT COLLATE "C",
    task_name   TEXT COLLATE "C" NOT NULL,
    task_version TEXT COLLATE "C" NOT NULL,
    short_name  TEXT COLLATE "C" NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    state       BYTEA NOT NULL                  -- ActionState
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX actions_by_name ON actions (run_id, name);
CREATE INDEX actions_by_parent ON actions (run_id, parent, id);
CREATE INDEX actions_by_time ON actions (run_id, created_at, id);

-- What has still to be looked after: actions that have not ended, and those that have with children that have not.
CREATE TABLE live (
    id          BIGINT PRIMARY KEY,             -- of the action
    run_id      BIGINT NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    parent      TEXT COLLATE "C",
    ancestors   TEXT[] COLLATE "C" NOT NULL,
    depth       BIGINT NOT NULL,
    phase       BIGINT NOT NULL,
    ended       BOOLEAN NOT NULL,
    task        BOOLEAN NOT NULL,
    queue       TEXT COLLATE "C",               -- of a task
    ready_at    BIGINT,                         -- when a worker may take it, while it waits for one
    due_at      BIGINT,                         -- when its next time limit passes
    worker      TEXT COLLATE "C",               -- who holds its live lease
    lookup_at   BIGINT,                         -- when to look into the cache; NULL while that waits or is done
    cache_key   TEXT COLLATE "C",               -- while a lookup is to come
    call_at     BIGINT,                         -- since when a condition asks for a call
    open_children BIGINT NOT NULL,
    asks_memory BIGINT NOT NULL,
    asks_cpu    BIGINT NOT NULL,
    asks_gpu    BIGINT NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX live_by_parent ON live (run_id, parent) WHERE NOT ended;
CREATE INDEX live_ended ON live (run_id) WHERE ended;
CREATE INDEX live_ready ON live (run_id, queue, ready_at, depth DESC) WHERE ready_at IS NOT NULL;
CREATE INDEX live_ready_next ON live (ready_at) WHERE ready_at IS NOT NULL;
CREATE INDEX live_due ON live (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX live_held ON live (worker) WHERE worker IS NOT NULL;
CREATE INDEX live_lookup ON live (lookup_at) WHERE lookup_at IS NOT NULL;
CREATE INDEX live_cache_key ON live (cache_key) WHERE cache_key IS NOT NULL;
CREATE INDEX live_call ON live (call_at) WHERE call_at IS NOT NULL;
CREATE INDEX live_paused ON live (run_id) WHERE phase = 9;

-- The logs of all runs.
CREATE TABLE events (
    run_id  BIGINT NOT NULL,
    seq     BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    body    BYTEA NOT NULL,                     -- Event
    PRIMARY KEY (run_id, seq)
);

-- The order of commits over all runs: which events each one added to which logs. Whoever commits holds the row of `feed`
-- until it has, so a commit that is seen is seen with all before it.
CREATE TABLE feed (
    one     BOOLEAN PRIMARY KEY CHECK (one),
    pos     BIGINT NOT NULL
) WITH (fillfactor = 10);
INSERT INTO feed VALUES (true, 0);
CREATE TABLE commits (
    pos     BIGINT PRIMARY KEY,
    runs    BIGINT[] NOT NULL,
    firsts  BIGINT[] NOT NULL,
    lasts   BIGINT[] NOT NULL
);
-- Each run once, at the last change of its root: commit * 2^20 + place in it.
CREATE TABLE run_changes (
    run_id  BIGINT PRIMARY KEY,
    changed BIGINT NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX run_changes_by_place ON run_changes (changed);

-- What queues hold in each place: sums that commits keep.
CREATE TABLE loads (
    org     TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    domain  TEXT COLLATE "C" NOT NULL,
    queue   TEXT COLLATE "C" NOT NULL,
    waiting BIGINT NOT NULL,                    -- actions that wait for a worker
    held    BIGINT NOT NULL,                    -- actions that a worker holds
    counted BIGINT NOT NULL,                    -- those of them that count against limits: without unfinished children
    memory  BIGINT NOT NULL,                    -- what these ask for together
    cpu     BIGINT NOT NULL,
    gpu     BIGINT NOT NULL,
    runs    BIGINT NOT NULL,                    -- runs whose root has been handed out and has not ended
    PRIMARY KEY (org, project, domain, queue)
) WITH (fillfactor = 50);

CREATE TABLE blobs (
    digest  TEXT COLLATE "C" PRIMARY KEY,
    bytes   BYTEA NOT NULL
);

-- One narrow row for each run, so that a look at all runs of a project reads little.
CREATE TABLE run_index (
    id           BIGINT PRIMARY KEY,            -- of the run
    org          TEXT COLLATE "C" NOT NULL,
    project      TEXT COLLATE "C" NOT NULL,
    domain       TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT NOT NULL,
    created_by   TEXT COLLATE "C" NOT NULL,
    source       BIGINT NOT NULL,
    phase        BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    started_at   BIGINT,
    ended_at     BIGINT,
    duration_ms  BIGINT,
    attempts     BIGINT NOT NULL,
    error_kind   TEXT COLLATE "C",
    cache_status TEXT COLLATE "C" NOT NULL,
    kind         BIGINT NOT NULL,
    task_project TEXT COLLATE "C",
    task_domain  TEXT COLLATE "C",
    task_name    TEXT COLLATE "C" NOT NULL,
    task_version TEXT COLLATE "C" NOT NULL,
    short_name   TEXT COLLATE "C" NOT NULL,
    environment  TEXT COLLATE "C" NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX run_index_by_time ON run_index (org, project, domain, created_at, id);
CREATE INDEX run_index_by_org ON run_index (org, created_at, id);
CREATE INDEX run_index_by_phase ON run_index (org, project, domain, phase, created_at, id);
CREATE INDEX run_index_by_task ON run_index (org, project, domain, task_name, created_at, id);
CREATE INDEX run_index_live ON run_index (org, project, domain) WHERE ended_at IS NULL;

CREATE TABLE run_labels (
    run_id  BIGINT NOT NULL,
    key     TEXT COLLATE "C" NOT NULL,
    value   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (run_id, key)
);
CREATE INDEX run_labels_by_value ON run_labels (key, value, run_id);

-- The run that each task was last part of: by version, and by name alone under the empty version.
CREATE TABLE task_runs (
    org     TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    domain  TEXT COLLATE "C" NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C" NOT NULL,
    run_id  BIGINT NOT NULL,
    PRIMARY KEY (org, project, domain, name, version)
) WITH (fillfactor = 70);

CREATE TABLE tasks (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org         TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    version     TEXT COLLATE "C" NOT NULL,
    digest      TEXT COLLATE "C" NOT NULL,
    short_name  TEXT COLLATE "C" NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    entrypoint  BIGINT NOT NULL,
    deployed_at BIGINT NOT NULL,
    deployed_by TEXT COLLATE "C" NOT NULL,      -- subject's identifier
    deployer    BYTEA NOT NULL,                 -- Subject
    UNIQUE (org, project, domain, name, version)
);
CREATE INDEX tasks_by_time ON tasks (org, project, domain, deployed_at, id);
-- Each deployed name once, with its newest version.
CREATE TABLE task_names (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org     TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    domain  TEXT COLLATE "C" NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    newest  BIGINT NOT NULL,                    -- of `tasks`
    UNIQUE (org, project, domain, name)
);

CREATE TABLE projects (
    org     TEXT COLLATE "C" NOT NULL,
    id      TEXT COLLATE "C" NOT NULL,
    own     BOOLEAN NOT NULL,                   -- whether it is one of the platform's own
    body    BYTEA NOT NULL,                     -- Project
    PRIMARY KEY (org, id)
);

CREATE TABLE domains (
    pos         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org         TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    name        TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    UNIQUE (org, id)
);

CREATE TABLE settings (
    org         TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,      -- empty for the organisation
    project     TEXT COLLATE "C" NOT NULL,      -- empty for the organisation and for a domain
    version     BIGINT NOT NULL,
    body        BYTEA NOT NULL,                 -- flyteidl2.settings.Settings
    edited_at   BIGINT NOT NULL,
    edited_by   BYTEA NOT NULL,                 -- Subject
    request     TEXT NOT NULL,
    PRIMARY KEY (org, domain, project, version)
);

-- Queues and limits of projects: small tables, which the dispatcher reads as a whole. `generation` is that of the body.
CREATE TABLE queues (
    org         TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    generation  BIGINT NOT NULL,
    deleted_at  BIGINT,
    body        BYTEA NOT NULL,                 -- Queue
    PRIMARY KEY (org, name)
);
CREATE TABLE project_limits (
    org         TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,      -- empty for all domains together
    generation  BIGINT NOT NULL,
    body        BYTEA NOT NULL,                 -- ProjectLimits
    PRIMARY KEY (org, project, domain)
);

CREATE TABLE cache_entries (
    org         TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,
    key         TEXT COLLATE "C" NOT NULL,
    updated_at  BIGINT NOT NULL,
    output_uri  TEXT NOT NULL,
    body        BYTEA NOT NULL,                 -- CacheEntry
    PRIMARY KEY (org, project, key, domain)
);
CREATE TABLE cache_reservations (
    org         TEXT COLLATE "C" NOT NULL,
    project     TEXT COLLATE "C" NOT NULL,
    domain      TEXT COLLATE "C" NOT NULL,      -- empty for keys shared by all domains of the project
    key         TEXT COLLATE "C" NOT NULL,
    owner       TEXT NOT NULL,
    body        BYTEA NOT NULL,                 -- Reservation
    PRIMARY KEY (org, project, key, domain)
);

-- Orders of lists that would change from page to page, kept when the first page is made (`aloft-store/src/page.rs`).
CREATE TABLE list_orders (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    list    BIGINT NOT NULL,                    -- fingerprint of the list it belongs to
    made_at BIGINT NOT NULL,
    rows    BIGINT NOT NULL
);
-- Their row numbers, 4096 to a part.
CREATE TABLE list_order_rows (
    list_order BIGINT NOT NULL,
    part       BIGINT NOT NULL,
    ids        BIGINT[] NOT NULL,
    PRIMARY KEY (list_order, part)
);

-- What filters need beyond Postgres' own functions.
CREATE FUNCTION instr(hay TEXT, needle TEXT) RETURNS INTEGER
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT strpos(hay, needle)';
CREATE FUNCTION ends_with(hay TEXT, tail TEXT) RETURNS BOOLEAN
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT right(hay, length(tail)) = tail';
-- `lower` folds by the collation of its argument, and "C" knows ASCII only.
DO $$
BEGIN
    CREATE FUNCTION folded(word TEXT) RETURNS TEXT
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT lower(word COLLATE "und-x-icu")';
EXCEPTION WHEN undefined_object THEN
    CREATE FUNCTION folded(word TEXT) RETURNS TEXT
        LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT lower(word COLLATE "default")';
END $$;
