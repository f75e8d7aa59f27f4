-- get: the link and its remaining time to live.
-- KEYS[1] link
-- reply   {verdict, owner, pttl, previous}: 'found' | 'absent'
-- Atomic, because an owner and a PTTL read later might belong to two different links.
local owner = redis.call('GET', KEYS[1])
if not owner then
  return {'absent', '', -2, ''}
end
return {'found', owner, redis.call('PTTL', KEYS[1]), owner}
