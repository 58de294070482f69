-- How long turns waited at the door, by model: those admitted, those still there, those that gave up.
-- since: instant  only turns said from then on
-- until: instant  only turns said before
-- owner: text  only this owner's
SELECT mode, type, model,
       count(*) FILTER (admitted_at IS NOT NULL) AS admitted,
       count(*) FILTER (admitted_at IS NULL AND state NOT IN ('failed', 'cancelled')) AS waiting,
       count(*) FILTER (admitted_at IS NULL AND state IN ('failed', 'cancelled')) AS gave_up,
       round(median(wait_ms) / 1000, 3) AS p50_s, round(quantile_cont(wait_ms, 0.95) / 1000, 3) AS p95_s,
       round(quantile_cont(wait_ms, 0.99) / 1000, 3) AS p99_s, round(max(wait_ms) / 1000, 3) AS max_s,
       round(avg(wait_ms) / 1000, 3) AS mean_s
FROM waits
WHERE said_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND said_at < coalesce($until::TIMESTAMPTZ, 'infinity')
  AND ($owner::VARCHAR IS NULL OR owner = $owner::VARCHAR)
GROUP BY ALL ORDER BY mode, type, model
