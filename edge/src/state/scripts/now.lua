-- Before every script: the server's time in milliseconds, the same for all edges.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
