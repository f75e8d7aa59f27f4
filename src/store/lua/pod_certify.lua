-- pod_certify: declare a pod dead, for good.
-- KEYS[1] lease hash, KEYS[2] state hash (its name is the event channel too)
-- ARGV    pod, seen_incarnation (0 = none): that of a user's ownership record
-- reply   {verdict, incarnation, microseconds}: 'unknown' | 'dead' | 'alive' for at most that time
-- Atomic, because once a client has read 'dead' no renewal up to that incarnation may ever succeed.
-- After the lease hash was lost a pod that it does not know may be alive: until the hold is over,
-- and if no pod has written its times yet. Then the wait is a second.
-- A process that owns a user and is not in the lease hash was forgotten. It gets a lease and a grace
-- from when it was first asked about (`f:` incarnation:time), in which a renewal brings it back.
local pod, seen = ARGV[1], tonumber(ARGV[2])
local lease, grace, gap = times()
local incarnation, dead = incarnation_of(pod), moment('x:' .. pod)
if seen > 0 and seen <= dead then
  -- That process was replaced or is dead, whichever process has the index now.
  return {'dead', text(dead), 0}
end
if seen > math.max(incarnation, dead) and seen < 2 ^ 52 then
  local asked, since = string.match(field('f:' .. pod) or '', '^(%d+):(%d+)$')
  since = tonumber(asked) == seen and tonumber(since) or now
  since = math.min(since, now)
  if lease == 0 then
    return {'alive', text(seen), 1000000}
  end
  tick(lease, grace, gap)
  local till = math.max(since + lease + grace, hold)
  if now <= till then
    put('f:' .. pod, text(seen) .. ':' .. text(since))
    write()
    return {'alive', text(seen), text(till - now)}
  end
  put('x:' .. pod, text(seen))
  write()
  redis.call('HDEL', lease_key, 'f:' .. pod)
  publish(pod, 'DEATH')
  return {'dead', text(seen), 0}
end
if incarnation == 0 then
  if held == 0 and hold > 0 and now <= hold then
    return {'alive', '0', text(hold - now)}
  end
  return {'unknown', '0', 0}
end
if dead >= incarnation then
  return {'dead', text(dead), 0}
end
if lease == 0 then
  return {'alive', text(incarnation), 1000000}
end
local deadline = deadline_of(pod, field('d:' .. pod), lease)
tick(lease, grace, gap)
local till = math.max(deadline + grace, hold)
if now <= till then
  write()
  return {'alive', text(incarnation), text(till - now)}
end
put('x:' .. pod, text(incarnation))
write()
publish(pod, 'DEATH')
return {'dead', text(incarnation), 0}
