-- Fine-tunes, the newest first: how long they waited and ran, how far they came, and what became of the loss.
-- owner: text  only this owner's
-- most: count = 50  so many
SELECT f.session, f.name, f.owner, f.model, f.state, f.attempts, f.said_at, round(f.wait_ms / 1000, 3) AS wait_s,
       round((epoch_ms(coalesce(f.ended_at, p.as_of)) - epoch_ms(f.started_at)) / 1000, 3) AS ran_s,
       f.step, f.steps, round(f.first_loss, 4) AS first_loss, round(f.last_loss, 4) AS last_loss
FROM finetune_runs f, (SELECT max(logged_at) AS as_of FROM position) p
WHERE $owner::VARCHAR IS NULL OR f.owner = $owner::VARCHAR
ORDER BY f.said_at DESC, f.session LIMIT $most::BIGINT
