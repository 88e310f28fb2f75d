package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
)

// WritesOptions say what writes are measured.
type WritesOptions struct {
	Load      func(dir string) (*feature.Project, error)
	Dir       string        // an empty folder for the project
	Redis     string        // host:port
	Benchmark string        // redis-benchmark, "" for none
	Contacts  int           // that Redis is filled with
	Batch     int           // changes a batch
	Writes    int           // changes a turn
	Rounds    int           // in which the ways take turns
	TTL       time.Duration // of the view, 0 for none
	Seed      uint64
	Progress  io.Writer
}

// WritesTurn is what a way took once.
type WritesTurn struct {
	Entities    int     `json:"entities"` // that were written
	PerSecond   float64 `json:"per_second"`
	RedisMicros float64 `json:"redis_us"` // processor time of Redis, an entity; 0 where it doesn't tell
}

// WritesReport is what writes took, and medians of the turns' rates.
type WritesReport struct {
	Guarded          []WritesTurn `json:"guarded"`
	Plain            []WritesTurn `json:"redis_benchmark,omitempty"`
	GuardedPerSecond float64      `json:"guarded_per_second"`
	PlainPerSecond   float64      `json:"redis_benchmark_per_second,omitempty"`
	Ratio            float64      `json:"ratio,omitempty"`
}

// Writes fills a view's generation with contacts and writes batches of changes of them as a worker does, and lets redis-benchmark
// set as many hashes of as many fields and bytes, in pipelines of the same size, in turns. All of them are there before, and every
// change is newer than what stands there.
func Writes(ctx context.Context, o WritesOptions) (*WritesReport, error) {
	name := fmt.Sprintf("bench_%d", time.Now().UnixNano())
	ttl := ""
	if o.TTL > 0 {
		ttl = fmt.Sprintf("ttl: %dus, ", o.TTL.Microseconds())
	}
	err := writeProject(o.Dir, name, o.Redis, map[string]string{
		"streams/person.yaml": onlineProject["streams/person.yaml"],
		"features/bench.yaml": "entities: [{name: contact, join_keys: [contact_id]}]\nviews: [{name: profile, entity: contact, stream: person, " + ttl +
			"features: [f_age, f_orders, f_ltv, f_avg_basket, f_churn_score, f_country, f_tier, f_lang, f_opted_in, f_is_business]}]\n",
	})
	if err != nil {
		return nil, err
	}
	p, err := o.Load(o.Dir)
	if err != nil {
		return nil, err
	}
	l, err := lake.Open(ctx, lake.Config{Lake: p.Lake, Namespace: p.Name, Dir: p.Dir})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	store, err := online.Open(ctx, p.Name, o.Redis)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	raw := redis.NewClient(&redis.Options{Addr: o.Redis, DisableIdentity: true})
	defer raw.Close()
	defer emptyRedis(context.WithoutCancel(ctx), raw, name)
	beside := name[6:] // what redis-benchmark puts in place of __rand_int__ is 6 characters longer than the number of a contact
	defer emptyRedis(context.WithoutCancel(ctx), raw, beside)
	stream := p.Stream("person")
	if err := begin(ctx, l, store, p, stream); err != nil {
		return nil, err
	}
	live, err := online.NewLive(ctx, store, l, p)
	if err != nil {
		return nil, err
	}
	defer live.Close()
	people := &people{stream: stream, random: rand.New(rand.NewPCG(o.Seed, 3)), contacts: o.Contacts, now: time.Now().UnixMicro()}
	if _, err := o.guarded(ctx, raw, live, people.all()); err != nil {
		return nil, err
	}
	plain := func() (WritesTurn, error) {
		return o.plain(ctx, raw, beside+":profile:1:{contact|c__rand_int__}", people.typical())
	}
	if o.Benchmark != "" {
		if _, err := plain(); err != nil {
			return nil, err
		}
	}
	r := &WritesReport{}
	for range o.Rounds {
		turn, err := o.guarded(ctx, raw, live, people.changes(o.Writes))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(o.Progress, "guarded          %s\n", turn)
		r.Guarded = append(r.Guarded, turn)
		if o.Benchmark == "" {
			continue
		}
		if turn, err = plain(); err != nil {
			return nil, err
		}
		fmt.Fprintf(o.Progress, "redis-benchmark  %s\n", turn)
		r.Plain = append(r.Plain, turn)
	}
	r.GuardedPerSecond, r.PlainPerSecond = medianRate(r.Guarded), medianRate(r.Plain)
	if r.PlainPerSecond > 0 {
		r.Ratio = r.GuardedPerSecond / r.PlainPerSecond
	}
	return r, nil
}

func (t WritesTurn) String() string {
	return fmt.Sprintf("%7d entities, %8.0f/s, %5.2f us of Redis each", t.Entities, t.PerSecond, t.RedisMicros)
}

// medianRate is the median of the turns' rates, 0 without any.
func medianRate(turns []WritesTurn) float64 {
	if len(turns) == 0 {
		return 0
	}
	rates := make([]float64, len(turns))
	for i, t := range turns {
		rates[i] = t.PerSecond
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}

// begin makes the stream's tables and an empty generation of its view, which is read.
func begin(ctx context.Context, l *lake.Lake, store *online.Store, p *feature.Project, stream *feature.Stream) error {
	if err := l.CreateStream(ctx, stream); err != nil {
		return err
	}
	view := p.View("profile")
	w, err := online.NewViewWriter(ctx, store, p, view)
	if err != nil {
		return err
	}
	defer w.Close()
	g, err := w.Build(ctx, l, online.BuildOptions{Now: time.Now})
	if err != nil {
		return err
	}
	return store.Switch(ctx, view.Name, g)
}

// guarded writes changes as a worker does, a batch after the other.
func (o WritesOptions) guarded(ctx context.Context, raw *redis.Client, live *online.Live, changes *people) (WritesTurn, error) {
	var batches []*feature.Batch
	for changes.left() > 0 {
		batches = append(batches, changes.batch(o.Batch))
	}
	written := 0
	return turn(ctx, raw, func() (int, error) {
		for _, b := range batches {
			n, err := live.Write(ctx, b, lake.Head{})
			b.Release()
			if err != nil {
				return 0, err
			}
			written += n
		}
		return written, nil
	})
}

// Pipelines of redis-benchmark are those of a writer of a view.
const (
	benchmarkPipeline = "1000"
	benchmarkClients  = "4"
)

// plain has redis-benchmark set hashes of a contact's values; key is theirs with __rand_int__ in it.
func (o WritesOptions) plain(ctx context.Context, raw *redis.Client, key string, values []string) (WritesTurn, error) {
	host, port, _ := strings.Cut(o.Redis, ":")
	args := []string{"-h", host, "-p", port, "-n", strconv.Itoa(o.Writes), "-r", strconv.Itoa(o.Contacts), "-P", benchmarkPipeline, "-c", benchmarkClients, "--csv",
		"HSET", key, online.FieldOrder, feature.Order{EventTime: time.Now().UnixMicro(), Live: true}.String()}
	for i, v := range values {
		args = append(args, online.FeatureField(i), v)
	}
	var rate float64
	t, err := turn(ctx, raw, func() (int, error) {
		out, err := exec.CommandContext(ctx, o.Benchmark, args...).Output()
		if err != nil {
			return 0, fmt.Errorf("run %s: %w", o.Benchmark, err)
		}
		rate, err = benchmarkRate(out)
		return o.Writes, err
	})
	t.PerSecond = rate // its own, without its start
	return t, err
}

// benchmarkRate reads the requests a second that redis-benchmark tells last.
func benchmarkRate(out []byte) (float64, error) {
	lines, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err == nil && len(lines) > 0 && len(lines[len(lines)-1]) > 1 {
		if rate, err := strconv.ParseFloat(lines[len(lines)-1][1], 64); err == nil {
			return rate, nil
		}
	}
	return 0, fmt.Errorf("redis-benchmark told no rate: %.200q", out)
}

// turn measures work that writes some number of entities.
func turn(ctx context.Context, raw *redis.Client, work func() (int, error)) (WritesTurn, error) {
	before, begun := redisTime(ctx, raw), time.Now()
	n, err := work()
	if err != nil {
		return WritesTurn{}, err
	}
	return WritesTurn{
		Entities: n, PerSecond: float64(n) / time.Since(begun).Seconds(), RedisMicros: float64((redisTime(ctx, raw) - before).Microseconds()) / float64(n),
	}, nil
}

// redisTime is the processor time that Redis has used, 0 of one that doesn't tell.
func redisTime(ctx context.Context, raw *redis.Client) time.Duration {
	text, err := raw.Info(ctx, "cpu").Result()
	if err != nil {
		return 0
	}
	var sum float64
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			seconds, _ := strconv.ParseFloat(value, 64)
			sum += seconds
		}
	}
	return time.Duration(sum * float64(time.Second))
}

// people makes changes of contacts.
type people struct {
	stream   *feature.Stream
	random   *rand.Rand
	contacts int
	now      int64 // event time of the next change
	offset   int64
	queue    []int // contacts that are to change
}

// all has every contact change once, and changes n drawn at random. Batches of them are made by batch.
func (p *people) all() *people {
	for i := range p.contacts {
		p.queue = append(p.queue, i)
	}
	return p
}

func (p *people) changes(n int) *people {
	for range n {
		p.queue = append(p.queue, p.random.IntN(p.contacts))
	}
	return p
}

func (p *people) left() int { return len(p.queue) }

// batch makes the next changes, n at most, each a microsecond after the one before. The caller releases it.
func (p *people) batch(n int) *feature.Batch {
	n = min(n, len(p.queue))
	schema := p.stream.LogSchema()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Reserve(n)
	span := feature.Span{Partition: feature.Partition{Topic: p.stream.Topic}, From: p.offset, To: p.offset + int64(n)}
	for _, contact := range p.queue[:n] {
		for j, f := range schema.Fields() {
			appendValue(b.Field(j), p.value(f.Name, contact))
		}
		p.offset++
		p.now++
	}
	p.queue = p.queue[n:]
	return &feature.Batch{Stream: p.stream, Rows: []arrow.RecordBatch{b.NewRecordBatch()}, Spans: []feature.Span{span}}
}

// value is a change's value of a log column.
func (p *people) value(column string, contact int) any {
	pick := func(of ...string) any { return of[p.random.IntN(len(of))] }
	switch column {
	case "contact_id":
		return contactID(contact)
	case "f_age":
		return 18 + p.random.Int64N(72)
	case "f_orders":
		return p.random.Int64N(500)
	case "f_ltv":
		return float64(p.random.IntN(100_000)) / 100
	case "f_avg_basket":
		return float64(p.random.IntN(1_000_000)) / 10_000
	case "f_churn_score":
		return p.random.Float64()
	case "f_country":
		return pick("US", "DE", "FR", "GB", "IN", "BR")
	case "f_tier":
		return pick("free", "basic", "pro", "enterprise")
	case "f_lang":
		return pick("en", "de", "fr", "pt")
	case "f_opted_in":
		return p.random.IntN(10) < 7
	case "f_is_business":
		return p.random.IntN(10) < 2
	case feature.ColEventTime, feature.ColRecordedAt, feature.ColIngestedAt:
		return p.now
	case feature.ColTopic:
		return p.stream.Topic
	case feature.ColPartition:
		return int64(0)
	case feature.ColOffset:
		return p.offset
	case feature.ColOp:
		return feature.OpUpsert
	default:
		return nil
	}
}

// typical are values as Redis holds them, of a contact whose values have about as many bytes as most.
func (p *people) typical() []string {
	rows := make([][]string, 1001)
	size := func(row []string) int { return len(strings.Join(row, "")) }
	for i := range rows {
		for _, c := range p.stream.Columns[1:] {
			value := p.value(c.Name, 0)
			text := fmt.Sprint(value)
			if number, ok := value.(float64); ok {
				text = strconv.FormatFloat(number, 'g', -1, 64)
			}
			rows[i] = append(rows[i], text)
		}
	}
	slices.SortFunc(rows, func(a, b []string) int { return size(a) - size(b) })
	return rows[len(rows)/2]
}
