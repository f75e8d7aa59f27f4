-- get: the link, its remaining time to live, and the ownership record.
-- KEYS[1] link, KEYS[2] owner records
-- ARGV    service
-- reply   {verdict, owner, pttl, previous, record}: 'found' | 'absent'
-- Atomic, because an owner, a PTTL and a record read one after the other might belong to three
-- different links.
local owner = redis.call('GET', KEYS[1])
local record = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if not owner then
  return {'absent', '', -2, '', record}
end
return {'found', owner, redis.call('PTTL', KEYS[1]), owner, record}
