-- What it cost that GPUs were kept for one kind of work: how many turns of the other waited longer, and by how much.
-- since: instant  only admissions from then on
-- until: instant  only admissions before
SELECT mode, model, count(*) AS admitted, count(*) FILTER (reservation_ms > 0) AS delayed,
       round(coalesce(sum(reservation_ms), 0) / 1000, 3) AS delay_s, round(sum(waited_ms) / 1000, 3) AS waited_s,
       round(sum(reservation_ms) / nullif(sum(waited_ms), 0), 4) AS share_of_waiting,
       round(avg(reservation_ms) FILTER (reservation_ms > 0) / 1000, 3) AS mean_delay_s,
       round(max(reservation_ms) / 1000, 3) AS max_delay_s
FROM admissions
WHERE attempt = 1 AND logged_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND logged_at < coalesce($until::TIMESTAMPTZ, 'infinity')
GROUP BY ALL ORDER BY delay_s DESC, mode, model
