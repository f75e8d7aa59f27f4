-- claim: make a user a process's own.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, pod, incarnation, certified_pod ('' = none), certified_incarnation, above
-- reply   {verdict, owner, pttl, previous, record}: 'made', record has the new token and previous
--         the last one before | 'kept', the process owned the user already | 'stale', record names a
--         later process of the same pod | 'owned' by that owner | 'invalid' record, or no token
--         is left
-- Atomic, because of two processes that claim at once exactly one may win. No pod index decides
-- alone: an owner gives way to a certificate for its incarnation, or to a later process of its own
-- pod. A persistent link without a record (version 0.1, other programs) gives way to a certificate
-- for its pod. The record protects its process also while the link is absent or temporary.
-- Tokens rise with every owner, whatever the server's clock does. They are kept for a day after
-- the last owner; later the time alone makes them rise.
local pod, me, above = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[6])
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1]) or ''
local last = redis.call('HGET', KEYS[3], '#') or ''
redis.call('HEXISTS', KEYS[2], ARGV[1])
last = string.match(last, '^%d+$') and tonumber(last) or 0
if last >= 2 ^ 53 then
  last = 0
end
local holder, incarnation, token = string.match(record, '^(%d+):(%d+):(%d+)$')
if record ~= '' and not holder then
  return {'invalid', '', left, '', record}
end
incarnation, token = tonumber(incarnation), tonumber(token)
local fixed = owner and left == -1
local function dead(other, until_incarnation)
  return ARGV[4] ~= '' and other == ARGV[4] and until_incarnation <= tonumber(ARGV[5])
end
if holder == pod then
  if incarnation > me then
    return {'stale', pod, left, '', record}
  end
  if incarnation == me and owner == pod and fixed and token > above then
    return {'kept', owner, left, '', record}
  end
end
if fixed and owner ~= pod then
  if not dead(owner, holder == owner and incarnation or 0) then
    return {'owned', owner, left, '', holder == owner and record or ''}
  end
elseif holder and holder ~= pod and not fixed and not dead(holder, incarnation) then
  return {'owned', holder, left, '', record}
end
local time = redis.call('TIME')
local previous = token or last
local next = math.max(last + 1, (token or 0) + 1, above + 1, time[1] * 1000000 + time[2])
if next >= 2 ^ 53 then
  return {'invalid', '', left, '', record}
end
local text = string.format('%.0f', next)
local mine = pod .. ':' .. ARGV[3] .. ':' .. text
redis.call('SET', KEYS[1], pod)
redis.call('HSET', KEYS[2], ARGV[1], pod)
redis.call('HSET', KEYS[3], ARGV[1], mine, '#', text)
redis.call('PERSIST', KEYS[3])
return {'made', redis.call('GET', KEYS[1]), -1, string.format('%.0f', previous), mine}
