-- try_set: write the link unless another pod has the user.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, pod, ttl_ms (-1 = persistent)
-- reply   {verdict, owner, pttl, previous, record}: 'made' | 'kept' | 'invalid' record
-- Atomic, because of two pods that try at once exactly one may win. A link is free if it is absent,
-- if it already names this pod, or if it is temporary; but not if a process owns the user: only
-- that process, or a certificate of its death, sets the user free. A record that cannot be read may
-- be an owner's.
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1]) or ''
redis.call('HEXISTS', KEYS[2], ARGV[1])
local holder = string.match(record, '^(%d+):%d+:%d+$')
if record ~= '' and not holder then
  return {'invalid', owner or '', left, owner or '', record}
end
if holder and (not owner or left ~= -1) then
  return {'kept', holder, left, owner or '', record}
end
if owner and (holder == owner or (left == -1 and owner ~= ARGV[2])) then
  return {'kept', owner, left, owner, record}
end
if ARGV[3] == '-1' then
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return {'made', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), owner or '', ''}
