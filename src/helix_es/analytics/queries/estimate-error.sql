-- How well the waits that were told fit those that followed, as 'helix queue' counts them.
-- since: instant  only admissions from then on
-- until: instant  only admissions before
-- Told "at once" and right (both within 50 ms) is counted apart: it was easy. Near: within 30 %, or wrong by less
-- than a second where the wait was under three.
WITH counted AS (
  SELECT *, estimated_ms <= 50 AND waited_ms <= 50 AS at_once, abs(error_ms) AS off_ms FROM estimate_error
  WHERE logged_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND logged_at < coalesce($until::TIMESTAMPTZ, 'infinity')
)
SELECT mode, model, count(*) FILTER (at_once) AS at_once, count(*) FILTER (NOT at_once) AS told,
       round(avg((off_ms <= 0.3 * waited_ms)::INTEGER) FILTER (NOT at_once), 4) AS within_30_percent,
       round(avg((off_ms <= 0.3 * waited_ms OR (waited_ms < 3000 AND off_ms <= 1000))::INTEGER) FILTER (NOT at_once), 4) AS near,
       round(avg(off_ms) FILTER (NOT at_once) / 1000, 3) AS mean_error_s,
       round(median(off_ms) FILTER (NOT at_once) / 1000, 3) AS p50_error_s,
       round(quantile_cont(off_ms, 0.95) FILTER (NOT at_once) / 1000, 3) AS p95_error_s,
       round(avg(error_ms) FILTER (NOT at_once) / 1000, 3) AS mean_too_short_by_s
FROM counted GROUP BY ALL ORDER BY mode, model
