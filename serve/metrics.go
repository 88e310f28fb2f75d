package serve

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/loamdata/loam/online"
)

// metrics are what /metrics tells, counted from the start of the server.
type metrics struct {
	routes   []routeMetrics // as the server's routes, and last what no route answers
	entities atomic.Int64
	values   [4]atomic.Int64 // by status, as statuses
	errors   [4]atomic.Int64 // by code, as storeErrors
}

// routeMetrics are those of a route.
type routeMetrics struct {
	byStatus [500]atomic.Int64 // status 100 comes first
	buckets  [len(latencies) + 1]atomic.Int64
	nanos    atomic.Int64
}

// latencies are the upper bounds of the buckets of the histogram, with their text in seconds.
var latencies = [...]struct {
	most time.Duration
	text string
}{
	{100 * time.Microsecond, "0.0001"}, {250 * time.Microsecond, "0.00025"}, {500 * time.Microsecond, "0.0005"}, {time.Millisecond, "0.001"},
	{1500 * time.Microsecond, "0.0015"}, {2500 * time.Microsecond, "0.0025"}, {5 * time.Millisecond, "0.005"}, {10 * time.Millisecond, "0.01"},
	{25 * time.Millisecond, "0.025"}, {50 * time.Millisecond, "0.05"}, {100 * time.Millisecond, "0.1"}, {250 * time.Millisecond, "0.25"},
	{500 * time.Millisecond, "0.5"}, {time.Second, "1"}, {2500 * time.Millisecond, "2.5"},
}

// statuses are those that values are counted by.
var statuses = [...]online.Status{online.Present, online.NotFound, online.NullValue, online.OutsideMaxAge}

// storeErrors are the codes that errors of the online store are counted by.
var storeErrors = [...]string{codeAway, codeNotReady, codeTimeout, codeForeign}

// took notes a request that was answered.
func (m *routeMetrics) took(status int, d time.Duration) {
	if status >= 100 && status < 600 {
		m.byStatus[status-100].Add(1)
	}
	i := 0
	for i < len(latencies) && d > latencies[i].most {
		i++
	}
	m.buckets[i].Add(1)
	m.nanos.Add(int64(d))
}

// served notes values that were given.
func (m *metrics) served(r *online.Result) {
	var n [len(statuses)]int64
	for _, row := range r.Rows {
		for i := range row {
			for k := range statuses {
				if row[i].Status == statuses[k] {
					n[k]++
					break
				}
			}
		}
	}
	m.entities.Add(int64(len(r.Rows)))
	for k := range n {
		if n[k] > 0 {
			m.values[k].Add(n[k])
		}
	}
}

// failed notes an error of the online store.
func (m *metrics) failed(code string) {
	for i, c := range storeErrors {
		if c == code {
			m.errors[i].Add(1)
		}
	}
}

// metricsText answers with all metrics, in Prometheus's text format.
func (s *Server) metricsText(w http.ResponseWriter, _ *http.Request, _ *caller) error {
	m := &s.metrics
	var b []byte
	head := func(name, kind, help string) {
		b = append(b, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
	}
	line := func(name, labels string, v int64) {
		b = append(b, name...)
		if labels != "" {
			b = append(append(append(b, '{'), labels...), '}')
		}
		b = append(strconv.AppendInt(append(b, ' '), v, 10), '\n')
	}
	name := func(i int) string {
		if i < len(s.routes) {
			return s.routes[i].method + " " + s.routes[i].path
		}
		return "none"
	}
	head("loam_requests_total", "counter", "Requests that were answered, by route and HTTP status.")
	for i := range m.routes {
		for status := range m.routes[i].byStatus {
			if n := m.routes[i].byStatus[status].Load(); n > 0 {
				line("loam_requests_total", `route="`+name(i)+`",status="`+strconv.Itoa(status+100)+`"`, n)
			}
		}
	}
	head("loam_request_seconds", "histogram", "Time from the end of a request's header to the end of its answer, by route.")
	for i := range m.routes {
		route, total := `route="`+name(i)+`"`, int64(0)
		for k := range m.routes[i].buckets {
			total += m.routes[i].buckets[k].Load()
			le := "+Inf"
			if k < len(latencies) {
				le = latencies[k].text
			}
			line("loam_request_seconds_bucket", route+`,le="`+le+`"`, total)
		}
		seconds := float64(m.routes[i].nanos.Load()) / 1e9
		b = append(strconv.AppendFloat(append(b, "loam_request_seconds_sum{"+route+"} "...), seconds, 'g', -1, 64), '\n')
		line("loam_request_seconds_count", route, total)
	}
	head("loam_requests_in_flight", "gauge", "Requests that are being answered, open routes left out.")
	line("loam_requests_in_flight", "", int64(len(s.inFlight)))
	head("loam_entities_total", "counter", "Entities whose features were given.")
	line("loam_entities_total", "", m.entities.Load())
	head("loam_values_total", "counter", "Values that were given, by status.")
	for i, v := range statuses {
		line("loam_values_total", `status="`+string(v)+`"`, m.values[i].Load())
	}
	head("loam_store_errors_total", "counter", "Requests that failed by the online store, by code of the error.")
	for i, c := range storeErrors {
		line("loam_store_errors_total", `code="`+c+`"`, m.errors[i].Load())
	}
	if s.Log != nil {
		head("loam_feature_log_rows_total", "counter", "Rows of what was served that were logged.")
		line("loam_feature_log_rows_total", "", s.Log.Logged())
		head("loam_feature_log_dropped_total", "counter", "Requests that were to be logged and were not, because the lake takes less than is served.")
		line("loam_feature_log_dropped_total", "", s.Log.Dropped())
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b) // whoever asked has gone
	return nil
}
