-- pods: every pod of a service, with what its lease says.
-- KEYS[1] lease hash, KEYS[2] state hash
-- ARGV    (none)
-- reply   {now, hold, held, grace, watchers, lease fields and values, state fields and values}; the
--         last two packed, because a client parses one string faster than thousands
-- Atomic, because states and leases of two moments would show pods that never existed. It writes
-- the time only if no call has for an eighth of a gap, if the clock stepped back, or if the time was lost. So readers keep the
-- clock going, and the death of every pod at once is not taken for an outage of the store. A store
-- that rejects writes (out of memory, too few replicas) can still be read. A user without the
-- permission to count subscribers counts none. A service without pods leaves no trace.
local lease, grace, gap = times()
local leases = cmsgpack.pack(redis.call('HGETALL', lease_key))
local states = cmsgpack.pack(redis.call('HGETALL', KEYS[2]))
local watchers = redis.pcall('PUBSUB', 'NUMSUB', KEYS[2])[2] or 0
if stepped or now - last > gap / 8 then
  tick(lease, grace, gap)
  pcall(write)
end
return {text(now), text(hold), text(held), text(grace), watchers, leases, states}
