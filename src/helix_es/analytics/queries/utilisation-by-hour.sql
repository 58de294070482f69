-- How full the GPUs were, hour by hour: sessions held and slots offered, each weighted by time.
-- since: instant = -24h  from when on
-- until: instant = now  until when
-- model: text  only GPUs that served this model
-- gpu: text  only this GPU
-- Averages are over the part of the hour that the tables know. A slot that a draining GPU still holds counts as one.
WITH known AS (
  SELECT greatest($since::TIMESTAMPTZ, (SELECT min(from_at) FROM gpu_occupancy)) AS first_at,
         least($until::TIMESTAMPTZ, (SELECT max(logged_at) FROM position)) AS last_at
  WHERE EXISTS (FROM gpu_occupancy)
),
hours AS (
  SELECT hour, greatest(hour, first_at) AS begin_at, least(hour + INTERVAL 1 HOUR, last_at) AS end_at
  FROM known, unnest(generate_series(date_trunc('hour', first_at), last_at, INTERVAL 1 HOUR)) AS h(hour)
  WHERE greatest(hour, first_at) < least(hour + INTERVAL 1 HOUR, last_at)
),
pieces AS (
  SELECT h.hour, epoch_ms(h.end_at) - epoch_ms(h.begin_at) AS hour_ms,
         CASE WHEN o.gpu IS NULL THEN 0
              ELSE epoch_ms(least(coalesce(o.to_at, h.end_at), h.end_at)) - epoch_ms(greatest(o.from_at, h.begin_at)) END AS ms,
         coalesce(o.sessions, 0) AS sessions, greatest(coalesce(o.slots, 0), coalesce(o.sessions, 0)) AS slots
  FROM hours h
  LEFT JOIN gpu_occupancy o
    ON o.from_at < h.end_at AND coalesce(o.to_at, h.end_at) > h.begin_at
   AND ($model::VARCHAR IS NULL OR o.model = $model::VARCHAR) AND ($gpu::VARCHAR IS NULL OR o.gpu = $gpu::VARCHAR)
)
SELECT hour,
       round(coalesce(sum(ms), 0) / any_value(hour_ms), 2) AS gpus,
       round(coalesce(sum(ms * slots), 0) / any_value(hour_ms), 2) AS slots,
       round(coalesce(sum(ms * sessions), 0) / any_value(hour_ms), 2) AS sessions,
       round(sum(ms * sessions) / nullif(sum(ms * slots), 0), 4) AS utilisation,
       round(any_value(hour_ms) / 60000, 1) AS known_min
FROM pieces GROUP BY hour ORDER BY hour
