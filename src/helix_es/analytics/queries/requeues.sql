-- Open turns that went back to the door, by reason and model.
-- since: instant  only from then on
-- until: instant  only before
SELECT reason, error_code, model, count(*) AS requeues, count(DISTINCT session) AS sessions, count(DISTINCT gpu) AS gpus,
       max(attempt) AS most_attempts, arg_max(error, seq) AS last_error, max(logged_at) AS last_at
FROM requeues
WHERE logged_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND logged_at < coalesce($until::TIMESTAMPTZ, 'infinity')
GROUP BY reason, error_code, model ORDER BY requeues DESC, reason, error_code, model
