-- lease_clock: the prelude of every lease script; script.rs prepends it to each body.
-- KEYS[2] is the state hash, whose name is the event channel too; only scripts that publish get it.
-- KEYS[1] is the lease hash. Its fields, in microseconds of the store's clock where they are times:
--   per pod  i: incarnation, d: lease deadline, x: highest dead incarnation, b: process nonce,
--            u: Kubernetes pod UID
--   shared   clk  the time of the last access; time never runs backwards
--            hold after an outage no pod is declared dead before this time
--            held pods whose lease reached this time count as alive during the hold
--            t    lease:grace:gap of the pod that wrote last, for scripts that only read
--            sweep when pods that have been dead for long are evicted next
--            w    pod:deadline of the leader of the service
-- Everything is read first; `save` collects what `write` writes in the end.
local lease_key = KEYS[1]
local function field(name) return redis.call('HGET', lease_key, name) end
-- A field without a valid number counts as missing: it must not end every pod of a service.
local function number(name)
  local value = tonumber(field(name) or '0')
  if not value or value ~= value or value < 0 or value >= 2 ^ 53 then
    return 0
  end
  return value
end
local function text(x) return string.format('%.0f', x) end
local time = redis.call('TIME')
local last = number('clk')
local now = math.max(time[1] * 1000000 + time[2], last)
local hold, held = number('hold'), number('held')
local save = {}
local function put(name, value)
  save[#save + 1] = name
  save[#save + 1] = value
end
local function write()
  for i = 1, #save, 2 do
    redis.call('HSET', lease_key, save[i], save[i + 1])
  end
end
-- Events are best effort: polling finds the change too. A user without the permission to publish
-- delays the notification, but never loses a renewal.
local function publish(pod, event)
  redis.pcall('PUBLISH', KEYS[2], '{"podId":' .. pod .. ',"event":"' .. event .. '"}')
end
-- A time without access longer than the gap is an outage, a failover or a clock step. Then every
-- pod gets a new lease and grace, so that the outage moves no user.
local function tick(lease, grace, gap)
  if last > 0 and gap > 0 and now - last > gap then
    if last > hold then
      held = last
      put('held', text(held))
    end
    hold = now + lease + grace
    put('hold', text(hold))
  end
  put('clk', text(now))
end
local function times()
  local lease, grace, gap = string.match(field('t') or '', '^(%d+):(%d+):(%d+)$')
  return tonumber(lease or '0'), tonumber(grace or '0'), tonumber(gap or '0')
end
