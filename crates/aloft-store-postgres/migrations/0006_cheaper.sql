-- What an action costs.

-- Each index of actions answers one question. Those that lists and windows use begin with a sum, so that a look at one action
-- by its name cannot take them for it, however little the planner knows of the table.
DROP INDEX actions_by_group;
CREATE INDEX actions_by_group ON actions ((run_id + 0), parent, grp, id);
DROP INDEX actions_by_time;
CREATE INDEX actions_by_time ON actions ((run_id + 0), created_at, id);

-- What a worker holds is read in parts.
DROP INDEX live_held;
CREATE INDEX live_held ON live (worker, id) WHERE worker IS NOT NULL;

-- A batch changes many actions of a page at once: each finds room for its next version there, and no index is touched.
ALTER TABLE actions SET (fillfactor = 50);

-- Control planes of this version keep `child_counts` themselves, and say so on each connection. For the version before, the
-- triggers go on.
DROP TRIGGER child_counts_new ON actions;
CREATE TRIGGER child_counts_new AFTER INSERT ON actions REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT WHEN (current_setting('aloft.child_counts', true) IS DISTINCT FROM 'kept')
    EXECUTE FUNCTION count_new_children();
DROP TRIGGER child_counts_changed ON actions;
CREATE TRIGGER child_counts_changed AFTER UPDATE ON actions REFERENCING OLD TABLE AS stale NEW TABLE AS fresh
    FOR EACH STATEMENT WHEN (current_setting('aloft.child_counts', true) IS DISTINCT FROM 'kept')
    EXECUTE FUNCTION count_changed_children();
