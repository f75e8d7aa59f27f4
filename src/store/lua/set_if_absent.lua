-- set_if_absent: create a temporary link, or keep the existing one.
-- KEYS[1] link, KEYS[2] owner records
-- ARGV    service, pod, ttl_ms
-- reply   {verdict, owner, pttl, previous, record}: 'made' | 'kept'
-- Atomic, because two clients that both find no link must end with one pod. A kept temporary link
-- lives at least ttl_ms from now on; it is never shortened, and a persistent one never expires.
-- Nothing is read twice: what was written is known. The PTTL at the end is the read that client
-- tracking needs. Only a persistent link has an owner.
local owner = redis.call('GET', KEYS[1])
if not owner then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return {'made', ARGV[2], redis.call('PTTL', KEYS[1]), '', ''}
end
local left = redis.call('PTTL', KEYS[1])
if left == -1 then
  return {'kept', owner, left, owner, redis.call('HGET', KEYS[2], ARGV[1]) or ''}
end
if left < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'kept', owner, redis.call('PTTL', KEYS[1]), owner, ''}
end
return {'kept', owner, left, owner, ''}
