-- The floor as of the newest that is known: each GPU, what it serves, sessions and slots, and its last heartbeat.
SELECT o.gpu, o.kind, o.pool, o.state, o.purpose, o.model, o.sessions, o.slots, o.from_at AS since,
       h.beat_at, round(h.utilisation, 3) AS utilisation, round(h.memory_used_bytes / 1073741824, 2) AS memory_gib, h.temperature_c
FROM gpu_occupancy o
LEFT JOIN (
  SELECT gpu, incarnation, max(logged_at) AS beat_at, arg_max(utilisation, logged_at) AS utilisation,
         arg_max(memory_used_bytes, logged_at) AS memory_used_bytes, arg_max(temperature_c, logged_at) AS temperature_c
  FROM heartbeats GROUP BY gpu, incarnation
) h USING (gpu, incarnation)
WHERE o.to_at IS NULL ORDER BY o.gpu
