-- inspect: every pod of a service and its lease, without any write.
-- KEYS[1] lease hash, KEYS[2] state hash
-- ARGV    (none)
-- reply   {now, hold, held, grace, watchers, lease fields and values, state fields and values}; the
--         last two packed, because a client parses one string faster than thousands
-- Atomic, because states and leases of two moments would show pods that never existed. It writes
-- nothing, not even the time: `tick` only computes here what the next call would find.
local lease, grace, gap = times()
local leases = cmsgpack.pack(redis.call('HGETALL', lease_key))
local states = cmsgpack.pack(redis.call('HGETALL', KEYS[2]))
local watchers = redis.pcall('PUBSUB', 'NUMSUB', KEYS[2])[2] or 0
tick(lease, grace, gap)
return {text(now), text(hold), text(held), text(grace), watchers, leases, states}
