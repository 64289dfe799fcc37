-- The fields of a hash of put_field.lua that have not expired: field, value, milliseconds left.
local all, living = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
    local expires, value = string.match(all[i + 1], '^(%d+) (.*)$')
    local left = (tonumber(expires) or 0) - now
    if left > 0 then
        living[#living + 1] = all[i]
        living[#living + 1] = value
        living[#living + 1] = string.format('%.0f', left)
    else
        redis.call('HDEL', KEYS[1], all[i])
    end
end
return living
