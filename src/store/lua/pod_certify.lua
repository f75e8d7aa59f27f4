-- pod_certify: declare a pod dead, for good.
-- KEYS[1] lease hash, KEYS[2] state hash (its name is the event channel too)
-- ARGV    pod
-- reply   {verdict, incarnation, microseconds}: 'unknown' | 'dead' | 'alive' for at most that time
-- Atomic, because once a client has read 'dead' no renewal up to that incarnation may ever succeed.
local pod = ARGV[1]
local lease, grace, gap = times()
local incarnation, deadline, dead = number('i:' .. pod), number('d:' .. pod), number('x:' .. pod)
if incarnation == 0 then
  return {'unknown', '0', 0}
end
if dead >= incarnation then
  return {'dead', text(dead), 0}
end
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
