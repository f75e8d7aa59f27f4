-- pod_end: a clean stop; successors need not wait, and clients move the users at once.
-- KEYS[1] lease hash, KEYS[2] state hash (its name is the event channel too)
-- ARGV    pod, incarnation
-- reply   {verdict, incarnation, microseconds}: 'ok' | 'superseded' by that incarnation
-- Atomic, because only the process that holds the index may release it.
local pod, me = ARGV[1], tonumber(ARGV[2])
local incarnation, dead = moment('i:' .. pod), moment('x:' .. pod)
local speaks = string.match(field('w') or '', '^(%d+):') == pod
redis.call('HEXISTS', KEYS[2], pod)
if incarnation > me then
  return {'superseded', text(incarnation), 0}
end
tick(times())
put('i:' .. pod, ARGV[2])
put('x:' .. pod, text(math.max(me, dead)))
put('d:' .. pod, '0')
write()
if speaks then
  redis.call('HDEL', lease_key, 'w')
end
redis.call('HDEL', KEYS[2], pod)
publish(pod, 'LEAVE')
return {'ok', ARGV[2], 0}
