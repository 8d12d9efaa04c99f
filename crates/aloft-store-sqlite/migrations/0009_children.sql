-- The children of an action in windows (`aloft-store/src/children.rs`).

-- Group by group, in the order of their creation.
CREATE INDEX actions_by_group ON actions (run_id, parent, grp);
DROP INDEX actions_by_parent;

-- How many children of each group are in each phase, by their own records. Kept by the writer.
CREATE TABLE child_counts (
    run_id  INTEGER NOT NULL,
    parent  TEXT NOT NULL,
    grp     TEXT NOT NULL,
    p1      INTEGER NOT NULL,
    p2      INTEGER NOT NULL,
    p3      INTEGER NOT NULL,
    p4      INTEGER NOT NULL,
    p5      INTEGER NOT NULL,
    p6      INTEGER NOT NULL,
    p7      INTEGER NOT NULL,
    p8      INTEGER NOT NULL,
    p9      INTEGER NOT NULL,
    p10     INTEGER NOT NULL,
    PRIMARY KEY (run_id, parent, grp)
) STRICT, WITHOUT ROWID;

INSERT INTO child_counts
SELECT run_id, parent, grp, sum(phase = 1), sum(phase = 2), sum(phase = 3), sum(phase = 4), sum(phase = 5), sum(phase = 6),
       sum(phase = 7), sum(phase = 8), sum(phase = 9), sum(phase = 10)
FROM actions WHERE parent IS NOT NULL GROUP BY run_id, parent, grp;

CREATE TRIGGER child_counts_gone AFTER DELETE ON runs BEGIN
    DELETE FROM child_counts WHERE run_id = OLD.id;
END;
