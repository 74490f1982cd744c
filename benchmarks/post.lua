-- For wrk: posts one body again and again, counts answers by status, and prints one line of JSON.
-- wrk -s post.lua URL -- BODY_FILE CONTENT_TYPE PAUSE
-- PAUSE: milliseconds that a client waits on average before each request.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*all")
  wrk.headers["Content-Type"] = arguments[2]
  file:close()
  pause = tonumber(arguments[3])
  if pause == 0 then delay = nil end -- calling it takes time
  answered, rejected, failed = 0, 0, 0
end

function delay()
  return math.random(math.floor(0.7 * pause), math.ceil(1.3 * pause))
end

function response(status)
  if status == 200 then answered = answered + 1
  elseif status == 503 or status == 429 then rejected = rejected + 1
  else failed = failed + 1 end
end

function done(summary, latency)
  local total = { answered = 0, rejected = 0, failed = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(total) do total[name] = total[name] + thread:get(name) end
  end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '\nresult {"answered": %d, "rejected": %d, "failed": %d, "errors": %d, "seconds": %.3f, "p50": %.2f, "p95": %.2f, "p99": %.2f}\n',
    total.answered, total.rejected, total.failed, errors, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
