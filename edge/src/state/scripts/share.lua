-- A hash: a field for each edge with when its lease expires, its demand and its part in millionths.
-- Does what share.rs does. ARGV: edge, demand, ttl, and how many edges there may be.
local edge, demand, ttl, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local whole = 1000000
local demands, taken, sum, known = { demand }, 0, demand, false
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
    local expires, wants, has = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
    if (tonumber(expires) or 0) <= now then
        redis.call('HDEL', KEYS[1], all[i])
    elseif all[i] == edge then
        known = true
    else
        demands[#demands + 1] = tonumber(wants)
        sum = sum + tonumber(wants)
        taken = taken + tonumber(has)
    end
end
local count = #demands
if not known and count > most then
    return 0
end

-- Mine is the first of the demands.
local function fair()
    if sum == 0 then
        return math.floor(whole / count)
    end
    local least = math.floor(whole / 10 / count)
    local small, smalls, rest = {}, 0, sum
    while true do
        local left, of = whole - least * smalls, rest
        local more = false
        for i = 1, count do
            if not small[i] and math.floor(demands[i] * left / of) < least then
                small[i], smalls, rest, more = true, smalls + 1, rest - demands[i], true
            end
        end
        if not more then
            return small[1] and least or math.floor(demand * left / of)
        end
    end
end

local part = math.max(0, math.min(fair(), whole - taken))
redis.call('HSET', KEYS[1], edge, string.format('%.0f %.0f %.0f', now + ttl, demand, part))
if redis.call('PTTL', KEYS[1]) < ttl then
    redis.call('PEXPIRE', KEYS[1], ttl)
end
return part
