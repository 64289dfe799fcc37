-- ARGV: field. 1: it was there and had not expired.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old then
    return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
return (tonumber(string.match(old, '^%d+')) or 0) > now and 1 or 0
