-- get: the link and what is left of it.
-- KEYS[1] link
-- reply   {verdict, owner, pttl, previous}: 'found' | 'absent'
-- Atomic, because a link read and its life read later might belong to two different links.
local owner = redis.call('GET', KEYS[1])
if not owner then
  return {'absent', '', -2, ''}
end
return {'found', owner, redis.call('PTTL', KEYS[1]), owner}
