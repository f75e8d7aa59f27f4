-- lease_clock: the prelude of every lease script; script.rs prepends it to each body.
-- KEYS[2] is the state hash, whose name is the event channel too.
-- KEYS[1] is the lease hash. Its fields, in microseconds of virtual time where they are times:
--   per pod  i: incarnation, d: lease deadline, x: highest dead incarnation, b: process nonce,
--            u: Kubernetes pod UID, f: a forgotten process that owns users, and when it was first
--            asked about (incarnation:time)
--   shared   format  the version of the layout: the highest that a pod has written
--            off  virtual time = TIME + off; grows when the server's clock steps back
--            clk  the virtual time of the last access; it never decreases
--            clk2 the same: another program that writes one of them does not move the time
--            hold after an outage no pod is declared dead before this time
--            hold2 the same: another program that writes one of them ends no protection
--            held pods whose lease reached this time count as alive during the hold; without it,
--                 the lease hash was lost: pods that are not in it may be alive too
--            jump size:time of the last jump of time for which a hold began, and when it was seen
--            step pod:count:time of the pod that last reported a step, how often it did so in
--                 succession, and when last
--            t    lease:grace:gap of the pod that wrote last, for scripts that only read
--            sweep when pods that have been dead for long are evicted next
--            w    pod:deadline of the leader of the service
-- Everything is read first; `save` collects what `write` writes in the end.
-- Other programs may write here too. A field without a valid number counts as missing, and a time
-- too far ahead is replaced: an invalid field must not harm more than its own pod.
local lease_key, FORMAT = KEYS[1], 1
-- No pod can be configured with a shorter lease.
local LEASE_LEAST = 100000
local function field(name) return redis.call('HGET', lease_key, name) end
local function parse(stored, limit)
  local value = stored and string.match(stored, '^%d+$') and tonumber(stored)
  return value and value < limit and value or nil
end
local function number(name) return parse(field(name), 2 ^ 53) or 0 end
-- The store's time, an incarnation: less than 2^52, which as a time is the year 2112.
local function moment(name) return parse(field(name), 2 ^ 52) or 0 end
local function text(x) return string.format('%.0f', x) end
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
local time = redis.call('TIME')
local real = time[1] * 1000000 + time[2]
local stored_off = field('off')
local off = tonumber(string.match(stored_off or '', '^-?%d+$') or '0')
if real + off < 0 or real + off >= 2 ^ 52 then
  off = 0
end
-- Of two that differ the one that is nearer to the server's clock counts.
local last, second = moment('clk'), moment('clk2')
local function apart(time) return math.abs(time - real - off) end
if second > 0 and (last == 0 or apart(second) < apart(last)) then
  last = second
end
-- The clock stepped back: virtual time goes on from the last access.
local back = last - real - off
local stepped = back > 0
if stepped then
  off = last - real
end
local now = real + off
local copies, held = { number('hold'), number('hold2') }, number('held')
local hold = math.max(copies[1], copies[2])
if held > last then
  held = 0
end
-- Events are best effort: polling finds the change too. A user without the permission to publish
-- delays the notification, but never loses a renewal.
local function publish(pod, event)
  redis.pcall('PUBLISH', KEYS[2], '{"podId":' .. pod .. ',"event":"' .. event .. '"}')
end
-- No pod is declared dead for a lease and a grace. Pods whose lease reached `alive` count as alive
-- meanwhile; without it, those that an earlier hold has named.
local function begin_hold(lease, grace, alive)
  if alive then
    held = alive
    put('held', text(held))
  end
  hold = math.max(hold, now + lease + grace)
  put('hold', text(hold))
  put('hold2', text(hold))
end
-- Whether the times are those of the pod that calls. Times that were read may be another program's:
-- by them nothing that protects a pod is called too far ahead.
local own_times = true
-- Advances the clock. After a time without access longer than the gap (an outage, a failover, a
-- step forward), and if the clock was lost, every pod gets a new lease and grace. So no user moves.
local function tick(lease, grace, gap, new)
  if lease == 0 then
    return -- nothing is judged, nor the silence ended, by a call that does not know the times
  end
  local outage = last > 0 and gap > 0 and now - last > gap
  local lost = last == 0 and not new
  local limit = now + 10 * (lease + grace)
  local invalid = own_times and hold > limit
  if invalid then
    hold = math.min(copies[1], copies[2])
    invalid = hold > limit
    if invalid then
      hold = 0
    end
  end
  if lost then
    begin_hold(lease, grace, 0)
  elseif outage then
    begin_hold(lease, grace, last > hold and last)
    put('jump', text(now - last) .. ':' .. text(now))
  elseif invalid then
    begin_hold(lease, grace)
  end
  put('clk', text(now))
  put('clk2', text(now))
  if text(off) ~= (stored_off or '0') then
    put('off', text(off))
  end
end
local function times()
  own_times = false
  local stored = field('t') or ''
  local lease, grace, gap = string.match(stored, '^(%d+):(%d+):(%d+)$')
  lease, grace, gap = parse(lease, 2 ^ 52), parse(grace, 2 ^ 52), parse(gap, 2 ^ 52)
  if lease and grace and gap and lease >= LEASE_LEAST then
    return lease, grace, gap
  end
  return 0, 0, 0
end
-- A pod of an earlier version leaves what a later one wrote.
local function put_format()
  if number('format') < FORMAT then
    put('format', text(FORMAT))
  end
end
-- The pod's incarnation. Its state still shows it if the lease was lost.
local function incarnation_of(pod)
  local incarnation = moment('i:' .. pod)
  if incarnation > 0 then
    return incarnation
  end
  local read, state = pcall(cjson.decode, redis.call('HGET', KEYS[2], pod) or '')
  local shown = read and type(state) == 'table' and state.incarnation
  return type(shown) == 'number' and parse(text(shown), 2 ^ 52) or 0
end
-- The pod's deadline. One that is missing or invalid becomes a new lease.
local function deadline_of(pod, stored, lease)
  local none = field('i:' .. pod) and '' or '0' -- without a lease there is no deadline to miss
  local deadline = parse(stored or none, 2 ^ 53)
  if not deadline or (own_times and deadline > now + 10 * lease) then
    deadline = now + lease
    put('d:' .. pod, text(deadline))
  end
  return deadline
end
