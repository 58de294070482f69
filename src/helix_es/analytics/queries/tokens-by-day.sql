-- Tokens by day (UTC) and model: read, read from a cache, written.
-- since: instant  only turns that ended from then on
-- until: instant  only turns that ended before
-- owner: text  only this owner's
SELECT date_trunc('day', ended_at)::DATE AS day, model, count(*) AS turns, sum(prompt_tokens)::BIGINT AS prompt_tokens,
       sum(cached_tokens)::BIGINT AS cached_tokens, sum(completion_tokens)::BIGINT AS completion_tokens,
       round(sum(cached_tokens) / nullif(sum(prompt_tokens), 0), 4) AS cached_share
FROM turns
WHERE ended_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND ended_at < coalesce($until::TIMESTAMPTZ, 'infinity')
  AND ($owner::VARCHAR IS NULL OR owner = $owner::VARCHAR)
GROUP BY ALL ORDER BY day, model
