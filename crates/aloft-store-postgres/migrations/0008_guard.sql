-- A batch that was decided on what its writer had kept locks its runs and looks, in the transaction that writes, whether all of
-- that still holds. Otherwise this ends the transaction, and the batch is decided again on what is there.
CREATE FUNCTION refuse_outdated() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a batch was decided on what another program has changed since, and is decided again'
        USING ERRCODE = 'ALF01';
END $$;

-- What limits new work is kept for a moment too, and by the same revision as what runs are created by.
CREATE TRIGGER change_sites AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON queues
    FOR EACH STATEMENT EXECUTE FUNCTION change_sites();
CREATE TRIGGER change_sites AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON project_limits
    FOR EACH STATEMENT EXECUTE FUNCTION change_sites();

-- Every program that can work with this schema counts children itself, and what is kept for such triggers costs at every change.
DROP TRIGGER child_counts_new ON actions;
DROP TRIGGER child_counts_changed ON actions;
DROP FUNCTION count_new_children;
DROP FUNCTION count_changed_children;
