-- Giving up history (`aloft-store/src/retention.rs`). One control plane at a time does it, by an advisory lock. It locks runs
-- that nobody else has locked, and after them only rows that it does not have to wait for; but blobs that runs shared are
-- removed under a lock on `blob_uses` and `tasks` that waits for those who commit, and is given up after a moment.

-- Runs that are gone for everybody, of which rows are still to be removed.
CREATE TABLE pruning (
    run_id  BIGINT PRIMARY KEY,
    org     TEXT COLLATE "C" NOT NULL
);

-- The run that a blob belongs to alone; NULL for those that runs share.
ALTER TABLE blobs ADD COLUMN run_id BIGINT;
CREATE INDEX blobs_of_run ON blobs (run_id) WHERE run_id IS NOT NULL;

-- Which shared blobs the runs of a place use that were created on a day. What there was before uses were noted has them all
-- under no place: any run of that time may. The version before notes no uses; a blob of which no use is noted is not removed.
CREATE TABLE blob_uses (
    org     TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    domain  TEXT COLLATE "C" NOT NULL,
    day     BIGINT NOT NULL,                    -- days since the epoch
    digest  TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (org, project, domain, day, digest)
);
CREATE INDEX blob_uses_of_blob ON blob_uses (digest);
CREATE INDEX tasks_of_blob ON tasks (digest);
INSERT INTO blob_uses SELECT '', '', '', extract(epoch FROM now())::bigint / 86400, digest FROM blobs;

-- Tables of history are large, and a fifth of them, the usual measure, is much to leave lying.
ALTER TABLE events SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE actions SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE blobs SET (autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE runs SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE run_index SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE commits SET (autovacuum_vacuum_scale_factor = 0.05);
