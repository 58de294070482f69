-- The turns that took longest from being said to their end, and where the time went.
-- since: instant  only turns said from then on
-- until: instant  only turns said before
-- model: text  only this model
-- most: count = 20  so many
SELECT session, turn, owner, mode, model, gpu, state, said_at, round(total_ms / 1000, 3) AS total_s,
       round(wait_ms / 1000, 3) AS wait_s, round((start_ms - coalesce(wait_ms, 0)) / 1000, 3) AS admitted_to_started_s,
       round((first_token_ms - start_ms) / 1000, 3) AS started_to_first_token_s, round(compute_ms / 1000, 3) AS compute_s,
       attempts, neighbours, slots, prompt_tokens, cached_tokens, completion_tokens
FROM turns
WHERE total_ms IS NOT NULL
  AND said_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND said_at < coalesce($until::TIMESTAMPTZ, 'infinity')
  AND ($model::VARCHAR IS NULL OR model = $model::VARCHAR)
ORDER BY total_ms DESC, said_at, session, turn LIMIT $most::BIGINT
