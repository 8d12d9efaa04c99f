-- The children of an action in windows (`aloft-store/src/children.rs`).

-- Group by group, in the order of their creation.
CREATE INDEX actions_by_group ON actions (run_id, parent, grp, id);
DROP INDEX actions_by_parent;

-- How many children of each group are in each phase, by their own records. Kept by triggers, one round for a statement of many
-- rows, so that a control plane of the version before keeps it too. Only who holds the lock on a run changes its rows.
CREATE TABLE child_counts (
    run_id  BIGINT NOT NULL,
    parent  TEXT COLLATE "C" NOT NULL,
    grp     TEXT COLLATE "C" NOT NULL,
    p1      BIGINT NOT NULL,
    p2      BIGINT NOT NULL,
    p3      BIGINT NOT NULL,
    p4      BIGINT NOT NULL,
    p5      BIGINT NOT NULL,
    p6      BIGINT NOT NULL,
    p7      BIGINT NOT NULL,
    p8      BIGINT NOT NULL,
    p9      BIGINT NOT NULL,
    p10     BIGINT NOT NULL,
    PRIMARY KEY (run_id, parent, grp)
) WITH (fillfactor = 50);

CREATE FUNCTION count_new_children() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO child_counts AS c
    SELECT run_id, parent, grp, count(*) FILTER (WHERE phase = 1), count(*) FILTER (WHERE phase = 2),
           count(*) FILTER (WHERE phase = 3), count(*) FILTER (WHERE phase = 4), count(*) FILTER (WHERE phase = 5),
           count(*) FILTER (WHERE phase = 6), count(*) FILTER (WHERE phase = 7), count(*) FILTER (WHERE phase = 8),
           count(*) FILTER (WHERE phase = 9), count(*) FILTER (WHERE phase = 10)
    FROM fresh WHERE parent IS NOT NULL GROUP BY run_id, parent, grp
    ON CONFLICT (run_id, parent, grp) DO UPDATE SET
        p1 = c.p1 + excluded.p1, p2 = c.p2 + excluded.p2, p3 = c.p3 + excluded.p3, p4 = c.p4 + excluded.p4,
        p5 = c.p5 + excluded.p5, p6 = c.p6 + excluded.p6, p7 = c.p7 + excluded.p7, p8 = c.p8 + excluded.p8,
        p9 = c.p9 + excluded.p9, p10 = c.p10 + excluded.p10;
    RETURN NULL;
END $$;

CREATE FUNCTION count_changed_children() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE child_counts c SET
        p1 = c.p1 + d.p1, p2 = c.p2 + d.p2, p3 = c.p3 + d.p3, p4 = c.p4 + d.p4, p5 = c.p5 + d.p5, p6 = c.p6 + d.p6,
        p7 = c.p7 + d.p7, p8 = c.p8 + d.p8, p9 = c.p9 + d.p9, p10 = c.p10 + d.p10
    FROM (
        SELECT n.run_id, n.parent, n.grp,
               sum((n.phase = 1)::int - (o.phase = 1)::int) p1, sum((n.phase = 2)::int - (o.phase = 2)::int) p2,
               sum((n.phase = 3)::int - (o.phase = 3)::int) p3, sum((n.phase = 4)::int - (o.phase = 4)::int) p4,
               sum((n.phase = 5)::int - (o.phase = 5)::int) p5, sum((n.phase = 6)::int - (o.phase = 6)::int) p6,
               sum((n.phase = 7)::int - (o.phase = 7)::int) p7, sum((n.phase = 8)::int - (o.phase = 8)::int) p8,
               sum((n.phase = 9)::int - (o.phase = 9)::int) p9, sum((n.phase = 10)::int - (o.phase = 10)::int) p10
        FROM fresh n JOIN stale o ON o.id = n.id
        WHERE n.phase <> o.phase AND n.parent IS NOT NULL GROUP BY n.run_id, n.parent, n.grp) d
    WHERE c.run_id = d.run_id AND c.parent = d.parent AND c.grp = d.grp;
    RETURN NULL;
END $$;

CREATE FUNCTION forget_children() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM child_counts c USING stale o WHERE c.run_id = o.id;
    RETURN NULL;
END $$;

-- What commits meanwhile would be counted by nobody.
LOCK TABLE runs, actions IN SHARE ROW EXCLUSIVE MODE;

INSERT INTO child_counts
SELECT run_id, parent, grp, count(*) FILTER (WHERE phase = 1), count(*) FILTER (WHERE phase = 2),
       count(*) FILTER (WHERE phase = 3), count(*) FILTER (WHERE phase = 4), count(*) FILTER (WHERE phase = 5),
       count(*) FILTER (WHERE phase = 6), count(*) FILTER (WHERE phase = 7), count(*) FILTER (WHERE phase = 8),
       count(*) FILTER (WHERE phase = 9), count(*) FILTER (WHERE phase = 10)
FROM actions WHERE parent IS NOT NULL GROUP BY run_id, parent, grp;

CREATE TRIGGER child_counts_new AFTER INSERT ON actions REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION count_new_children();
CREATE TRIGGER child_counts_changed AFTER UPDATE ON actions REFERENCING OLD TABLE AS stale NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION count_changed_children();
CREATE TRIGGER child_counts_gone AFTER DELETE ON runs REFERENCING OLD TABLE AS stale
    FOR EACH STATEMENT EXECUTE FUNCTION forget_children();

-- From when on records are packed (`aloft-store/src/packed.rs`): at once in a new database; an hour after this in one that
-- control planes of the version before, which cannot read such records, may still be working with.
ALTER TABLE schema_version ADD COLUMN packs_from BIGINT NOT NULL DEFAULT 0;
UPDATE schema_version SET packs_from = (extract(epoch FROM now()) * 1000000)::bigint + 3600000000;

-- The oldest version of the schema whose control planes can work with this one.
ALTER TABLE schema_version ADD COLUMN oldest BIGINT NOT NULL DEFAULT 0;
