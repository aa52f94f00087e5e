-- Adds to the counters of fixed windows. ARGV[1]: length of a window in milliseconds; then one amount for each key.
-- Returns for each key its count and the milliseconds until its window ends. No count falls below 0.
local answer = {}
for i, key in ipairs(KEYS) do
  local amount = tonumber(ARGV[i + 1])
  local count = redis.call('INCRBY', key, amount)
  if count <= 0 then
    redis.call('DEL', key)
    answer[#answer + 1] = 0
    answer[#answer + 1] = 0
  else
    local left = redis.call('PTTL', key)
    if left < 0 then
      left = tonumber(ARGV[1])
      redis.call('PEXPIRE', key, left)
    end
    answer[#answer + 1] = count
    answer[#answer + 1] = left
  end
end
return answer
