-- set_if_absent: create a temporary link, or keep the existing one.
-- KEYS[1] link
-- ARGV    pod, ttl_ms
-- reply   {verdict, owner, pttl, previous}: 'made' | 'kept'
-- Atomic, because two clients that both find no link must end with one pod. A kept temporary link
-- lives at least ttl_ms from now on; it is never shortened, and a persistent one never expires.
-- Nothing is read twice: what was written is known. The PTTL at the end is the read that client
-- tracking needs.
local owner = redis.call('GET', KEYS[1])
if not owner then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return {'made', ARGV[1], redis.call('PTTL', KEYS[1]), ''}
end
local left = redis.call('PTTL', KEYS[1])
if left ~= -1 and left < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'kept', owner, redis.call('PTTL', KEYS[1]), owner}
end
return {'kept', owner, left, owner}
