-- Adapters that answered: whose, how much they were used, and when last.
-- owner: text  only this owner's
SELECT * FROM adapters WHERE $owner::VARCHAR IS NULL OR owner = $owner::VARCHAR
ORDER BY last_used_at DESC NULLS LAST, owner, adapter
