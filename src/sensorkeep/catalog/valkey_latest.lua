-- Newest values in one hash. A value begins with its time, as 16 digits.
-- KEYS[1]: the hash. ARGV[1]: "fill" enters a value where there is none, "known" leaves it out. ARGV[2]: "correct" lets a
-- value of the same time replace what is there, "keep" does not. Then pairs of field and value.
-- Returns the positions (from 0) of the pairs left out.
local fields = {}
for i = 3, #ARGV, 2 do
  fields[#fields + 1] = ARGV[i]
end
local known = redis.call('HMGET', KEYS[1], unpack(fields))
local entered, left_out = {}, {}
for i = 1, #fields do
  local offered, present = ARGV[2 * i + 2], known[i]
  local enter
  if present then
    local newer = tonumber(string.sub(offered, 1, 16)) - tonumber(string.sub(present, 1, 16))
    enter = newer > 0 or (newer == 0 and ARGV[2] == 'correct' and offered ~= present)
  else
    enter = ARGV[1] == 'fill'
    if not enter then
      left_out[#left_out + 1] = i - 1
    end
  end
  if enter then
    entered[#entered + 1] = fields[i]
    entered[#entered + 1] = offered
  end
end
if #entered > 0 then
  redis.call('HSET', KEYS[1], unpack(entered))
end
return left_out
